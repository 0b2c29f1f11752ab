select id, name, host, pid, version, started_at,
       extract(epoch from clock_timestamp() - beat_at)::double precision as beat_seconds,
       handlers, queues
from {schema}.node
where state = 'alive' and beat_at > clock_timestamp() - make_interval(secs => %(alive_within)s)
order by id
