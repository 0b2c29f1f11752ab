-- The ids of all tasks that the filters let through; `page.sql` with nothing but the ids, and for all
-- of them, so that no way to look is better than another.
select coalesce(array_agg(chosen.id order by chosen.id), '{}')
from (
    select t.id
    from (
        select id, 'ready' as state, attempt, null::text as reason from {schema}.ready
        union all select id, 'scheduled', attempt, null from {schema}.scheduled
        union all select id, 'held', attempt, reason from {schema}.held
        union all select id, 'running', attempt, null from {schema}.running
        union all select id, 'dead', attempt, reason from {schema}.dead
        union all select id, state, attempt, null from {schema}.outcome
    ) s
    join {schema}.task t on t.id = s.id
    left join {schema}.attempt a on a.id = s.id and a.attempt = s.attempt
    where (%(states)s::text[] is null or s.state = any (%(states)s::text[]))
      and (not %(by_kind)s or (t.type = any (%(types)s::int[]) and t.queue = any (%(queues)s::int[])))
      and (%(tag)s::text is null or (t.tags @> array[%(tag)s::text] and t.tags <> '{}'))
      and t.id >= %(low)s and t.id < %(high)s
      and (%(created_from)s::timestamptz is null or t.created_at >= %(created_from)s)
      and (%(created_before)s::timestamptz is null or t.created_at < %(created_before)s)
      and (%(error)s::text is null or (
          s.state <> 'succeeded' and (s.attempt > 0 or s.reason is not null)
          and strpos(lower(coalesce(nullif(concat_ws(': ', a.error_type, nullif(a.error_message, '')),
                                           ''), s.reason)), lower(%(error)s::text)) > 0))
    order by t.id
    limit %(limit)s
) chosen
