select r.id, r.token, r.attempt, t.name as type, r.failures, r.crashes, r.losses, r.alone,
       r.cancel_requested, b.max_attempts, b.timeout_seconds,
       extract(epoch from clock_timestamp() - r.claimed_at)::double precision as age_seconds
from {schema}.running r
join {schema}.type t on t.id = r.type
join {schema}.task b on b.id = r.id
where r.node = %(node)s and (%(tokens)s::bigint[] is null or r.token = any (%(tokens)s))
order by r.id
