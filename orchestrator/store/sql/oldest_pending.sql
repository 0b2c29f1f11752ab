select q.name as queue, extract(epoch from clock_timestamp() - t.run_at)::double precision as seconds
from {schema}.queue q
cross join lateral (
    select r.id from {schema}.ready r where r.queue = q.id order by r.priority desc, r.seq limit 1
) head
join {schema}.task t on t.id = head.id
