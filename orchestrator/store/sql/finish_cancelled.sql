select {schema}.finish_cancelled(%(id)s, %(token)s, %(message)s, %(wall)s, %(cpu)s, %(rss)s)
