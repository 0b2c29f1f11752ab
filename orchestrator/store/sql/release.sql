select {schema}.release(%(ids)s::bigint[], %(tokens)s::bigint[])
