-- No scan of what ended well: the tasks that succeeded are what is left of all that are kept.
with counts as (
    select type, state, count(*) as n from (
        select type, 'ready' as state from {schema}.ready
        union all select type, 'scheduled' from {schema}.scheduled
        union all select type, 'held' from {schema}.held
        union all select type, 'running' from {schema}.running
        union all select type, 'dead' from {schema}.dead
        union all select type, state from {schema}.outcome where state <> 'succeeded'
    ) tasks group by type, state
), others as (
    select type,
           coalesce(sum(n) filter (where state = 'ready'), 0)::bigint as ready,
           coalesce(sum(n) filter (where state = 'scheduled'), 0)::bigint as scheduled,
           coalesce(sum(n) filter (where state = 'held'), 0)::bigint as held,
           coalesce(sum(n) filter (where state = 'running'), 0)::bigint as running,
           coalesce(sum(n) filter (where state = 'cancelled'), 0)::bigint as cancelled,
           coalesce(sum(n) filter (where state = 'expired'), 0)::bigint as expired,
           coalesce(sum(n) filter (where state = 'dead'), 0)::bigint as dead,
           sum(n)::bigint as n
    from counts group by type
), fresh as (
    -- Not counted by the leader yet.
    select type, count(*) as n from {schema}.task
    where id > (select up_to from {schema}.counted) group by type
)
select t.name, t.is_paused,
       coalesce(s.enqueued, 0) + coalesce(f.n, 0) as enqueued,
       coalesce(o.ready, 0), coalesce(o.scheduled, 0), coalesce(o.held, 0), coalesce(o.running, 0),
       greatest(0, coalesce(s.enqueued, 0) + coalesce(f.n, 0) - coalesce(s.gone, 0)
                   - coalesce(o.n, 0)) as succeeded,
       coalesce(o.cancelled, 0), coalesce(o.expired, 0), coalesce(o.dead, 0),
       array(select distinct n.name from {schema}.node n
             where n.state = 'alive' and {schema}.handles(n.handlers, t.name)
               and n.beat_at > clock_timestamp() - make_interval(secs => %(alive_within)s)
             order by n.name) as served_by
from {schema}.type t
left join {schema}.statistics s on s.type = t.id
left join others o on o.type = t.id
left join fresh f on f.type = t.id
order by t.name
