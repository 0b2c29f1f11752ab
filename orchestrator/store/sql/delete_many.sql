select task_id, answer from {schema}.delete_many(%(ids)s::bigint[], %(states)s::text[])
