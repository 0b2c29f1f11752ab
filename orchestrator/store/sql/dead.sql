-- Messages that differ in nothing but numbers, names in quotes and the like are one error. Alike ones
-- are put together first: most dead tasks died of the same few messages.
with alike as (
    select d.type, a.error_type, coalesce(a.error_message, d.reason) as message, count(*) as n,
           min(d.died_at) as first_at, max(d.died_at) as last_at, max(d.id) as sample
    from {schema}.dead d
    left join {schema}.attempt a on a.id = d.id and a.attempt = d.attempt
    where not %(by_kind)s or (d.type = any (%(types)s::int[]) and d.queue = any (%(queues)s::int[]))
    group by d.type, a.error_type, coalesce(a.error_message, d.reason)
), blanked as (
    select type, error_type, {schema}.error_shape(message) as message, n, first_at, last_at, sample
    from alike
)
select t.name as type, b.error_type, b.message, sum(b.n)::bigint as n, min(b.first_at) as first_at,
       max(b.last_at) as last_at, max(b.sample) as sample
from blanked b join {schema}.type t on t.id = b.type
group by t.name, b.error_type, b.message
order by n desc, t.name, b.error_type, b.message
