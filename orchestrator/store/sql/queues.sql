with counts as (
    select queue, state, count(*) as n, min(id) as first_id
    from (
        select queue, 'ready' as state, id from {schema}.ready
        union all select queue, 'scheduled', id from {schema}.scheduled
        union all select queue, 'held', id from {schema}.held
        union all select queue, 'running', id from {schema}.running
        union all select queue, 'dead', id from {schema}.dead
    ) live group by queue, state
), sums as (
    select queue,
           coalesce(sum(n) filter (where state = 'ready'), 0)::bigint as ready,
           coalesce(sum(n) filter (where state = 'scheduled'), 0)::bigint as scheduled,
           coalesce(sum(n) filter (where state = 'held'), 0)::bigint as held,
           coalesce(sum(n) filter (where state = 'running'), 0)::bigint as running,
           coalesce(sum(n) filter (where state = 'dead'), 0)::bigint as dead,
           min(first_id) filter (where state = 'ready') as first_ready
    from counts group by queue
)
select q.name, q.is_paused, coalesce(s.ready, 0), coalesce(s.scheduled, 0), coalesce(s.held, 0),
       coalesce(s.running, 0), coalesce(s.dead, 0),
       extract(epoch from clock_timestamp() - b.run_at)::double precision as oldest_seconds,
       array(select distinct n.name from {schema}.node n
             where n.state = 'alive' and ('*' = any (n.queues) or q.name = any (n.queues))
               and n.beat_at > clock_timestamp() - make_interval(secs => %(alive_within)s)
             order by n.name) as served_by
from {schema}.queue q
left join sums s on s.queue = q.id
left join {schema}.task b on b.id = s.first_ready
order by q.name
