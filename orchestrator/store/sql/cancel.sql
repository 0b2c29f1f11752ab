select {schema}.cancel(%(id)s)
