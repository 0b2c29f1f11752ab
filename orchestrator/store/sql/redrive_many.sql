select task_id, answer, key, other from {schema}.redrive_many(%(ids)s::bigint[])
