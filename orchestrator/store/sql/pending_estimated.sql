select t.name as type, (x.n * 100.0 / %(percent)s)::bigint as n
from (
    select type, count(*) as n from (
        select type from {schema}.ready tablesample system (%(percent)s)
        union all select type from {schema}.scheduled tablesample system (%(percent)s)
        union all select type from {schema}.held tablesample system (%(percent)s)
    ) waiting group by type
) x join {schema}.type t on t.id = x.type
