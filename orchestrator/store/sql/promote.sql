select {schema}.promote(%(limit)s)
