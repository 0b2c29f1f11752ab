select {schema}.redrive(%(id)s)
