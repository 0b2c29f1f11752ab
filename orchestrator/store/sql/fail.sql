select {schema}.fail(%(id)s, %(token)s, %(outcome)s, %(budget)s, %(limit)s, %(delay)s,
                     %(dead_reason)s, %(error_type)s, %(error_message)s, %(traceback)s,
                     %(crash)s::jsonb, %(wall)s, %(cpu)s, %(rss)s)
