select {schema}.count_enqueued(%(up_to)s)
