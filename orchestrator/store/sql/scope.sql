select array(select t.id from {schema}.type t
             where %(type)s::text is null or {schema}.handles(array[%(type)s::text], t.name)) as types,
       array(select q.id from {schema}.queue q
             where %(queue)s::text is null or q.name = %(queue)s) as queues,
       r.low, r.high, v.created_from, v.created_before
from (
    select clock_timestamp() - make_interval(secs => %(newer_than)s) as created_from,
           clock_timestamp() - make_interval(secs => %(older_than)s) as created_before
) v
cross join lateral {schema}.ids_created(v.created_from, v.created_before) r
