select t.name as type, x.n
from (
    select type, count(*) as n from (
        select type from {schema}.ready
        union all select type from {schema}.scheduled
        union all select type from {schema}.held
    ) waiting group by type
) x join {schema}.type t on t.id = x.type
