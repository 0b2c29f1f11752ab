select {schema}.mark_dead(%(node)s, %(judged)s)
