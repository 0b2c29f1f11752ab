select task_id, answer from {schema}.cancel_many(%(ids)s::bigint[], %(states)s::text[])
