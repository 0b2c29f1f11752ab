select d.id
from {schema}.dead d
join {schema}.type t on t.id = d.type
join {schema}.queue q on q.id = d.queue
where d.id > %(after)s
  and (%(type)s::text is null or t.name = %(type)s)
  and (%(queue)s::text is null or q.name = %(queue)s)
order by d.id
limit %(limit)s
