select {schema}.beat(%(node)s, %(workers)s::jsonb)
