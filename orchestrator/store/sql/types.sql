with counts as (
    select type, state, count(*) as n from (
        select type, 'ready' as state from {schema}.ready
        union all select type, 'scheduled' from {schema}.scheduled
        union all select type, 'held' from {schema}.held
        union all select type, 'running' from {schema}.running
        union all select type, 'dead' from {schema}.dead
        union all select b.type, o.state from {schema}.outcome o join {schema}.task b on b.id = o.id
    ) tasks group by type, state
)
select t.name, t.is_paused,
       coalesce((select s.enqueued from {schema}.statistics s where s.type = t.id), 0) as enqueued,
       coalesce(sum(n) filter (where state = 'ready'), 0)::bigint as ready,
       coalesce(sum(n) filter (where state = 'scheduled'), 0)::bigint as scheduled,
       coalesce(sum(n) filter (where state = 'held'), 0)::bigint as held,
       coalesce(sum(n) filter (where state = 'running'), 0)::bigint as running,
       coalesce(sum(n) filter (where state = 'succeeded'), 0)::bigint as succeeded,
       coalesce(sum(n) filter (where state = 'cancelled'), 0)::bigint as cancelled,
       coalesce(sum(n) filter (where state = 'expired'), 0)::bigint as expired,
       coalesce(sum(n) filter (where state = 'dead'), 0)::bigint as dead
from {schema}.type t left join counts c on c.type = t.id
group by t.id, t.name, t.is_paused
order by t.name
