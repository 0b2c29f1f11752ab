select count(*)
from (
    select from {schema}.ready r
    where r.queue = any (array(
        select q.id from {schema}.queue q
        where not q.is_paused and ('*' = any (%(queues)s) or q.name = any (%(queues)s))))
    limit %(limit)s
) x
