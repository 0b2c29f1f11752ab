select {schema}.unhold(%(patterns)s, %(limit)s, %(queues)s)
