select t.id, t.type, t.queue, t.state, t.priority, t.attempt, t.max_attempts, t.payload::text,
       t.result::text, t.headers::text, t.tags, t.idempotency_key, t.created_at, t.run_at,
       t.started_at, t.finished_at, t.reason, t.error_type, t.error_message,
       t.progress_done, t.progress_total, t.progress_message, t.progress_at,
       case when %(with_attempts)s
            then (select coalesce(json_agg(a order by a.attempt), '[]')::text
                  from {schema}.attempts a where a.id = t.id)
            else '[]' end as attempts
from {schema}.tasks t
where (%(states)s::text[] is null or t.state = any (%(states)s))
  and (%(type)s::text is null or t.type = %(type)s)
  and (%(queue)s::text is null or t.queue = %(queue)s)
  and (%(tag)s::text is null or %(tag)s = any (t.tags))
  and (%(before)s::bigint is null or t.id < %(before)s)
order by t.id desc
limit %(limit)s
