select t.id, t.type, t.queue, t.state, t.priority, t.attempt, t.max_attempts, t.payload::text,
       t.result::text, t.headers::text, t.tags, t.idempotency_key, t.created_at, t.run_at,
       t.started_at, t.finished_at, t.reason, t.error_type, t.error_message,
       t.progress_done, t.progress_total, t.progress_message, t.progress_at,
       (select coalesce(json_agg(a order by a.attempt), '[]')::text
        from {schema}.attempts a where a.id = t.id) as attempts
from {schema}.tasks t
where t.id = any (%(ids)s)
order by t.id
