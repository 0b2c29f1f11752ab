-- What is in `running` is now; what the node said of its slots is as old as its last beat.
select n.name, coalesce(w.slot, r.slot) as slot, coalesce(r.pid, w.pid) as pid,
       case when r.id is not null then 'running' when w.state = 'boot' then 'starting'
            else 'idle' end as state,
       r.id as task, t.name as type, r.attempt,
       extract(epoch from clock_timestamp() - r.claimed_at)::double precision as seconds,
       extract(epoch from clock_timestamp() - n.beat_at)::double precision as beat_seconds
from {schema}.node n
cross join lateral (
    select d.slot, d.pid, d.state
    from jsonb_to_recordset(n.workers) as d (slot text, pid int, state text)
    union
    -- A worker that was born after the last beat.
    select x.slot, null, null from {schema}.running x
    where x.node = n.id
      and not exists (select from jsonb_to_recordset(n.workers) as d (slot text) where d.slot = x.slot)
) w
left join {schema}.running r on r.node = n.id and r.slot = w.slot and r.started
left join {schema}.type t on t.id = r.type
where n.state = 'alive' and n.beat_at > clock_timestamp() - make_interval(secs => %(alive_within)s)
order by n.id, length(w.slot), w.slot
