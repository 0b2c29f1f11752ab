select id, existing
from {schema}.enqueue_many(
    %(type)s, %(queue)s, %(priority)s::smallint, %(run_at)s::timestamptz,
    %(delay)s::double precision, %(payloads)s::text[], %(keys)s::text[],
    %(max_attempts)s::smallint, %(timeout)s::double precision, %(ttl)s::double precision,
    %(tags)s::text[], %(headers)s::jsonb)
