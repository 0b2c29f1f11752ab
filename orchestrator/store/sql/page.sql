-- One page of tasks, newest first. The filters come in as constants: what they do not ask for vanishes
-- when the statement is planned. The planner takes tasks of one kind to be spread evenly over the
-- ids, and would walk a million of them where they are all old. Hence each way to look is written
-- out, and what must not be turned into a join of whole tables is a condition with `offset 0`.
with body as not materialized (
    -- Every task, or those that succeeded: too many to look at one by one.
    select t.id, t.type, t.queue
    from {schema}.task t
    left join {schema}.outcome o on o.id = t.id and o.state = 'succeeded'
    where %(by_body)s
      and (%(any_state)s or o.id is not null)
      and (%(created_from)s::timestamptz is null or t.created_at >= %(created_from)s)
      and (%(created_before)s::timestamptz is null or t.created_at < %(created_before)s)
), others as not materialized (
    -- Every task that has not succeeded.
    select s.id, s.queue, s.attempt, s.reason
    from (
        select id, 'ready' as state, attempt, type, queue, null::text as reason from {schema}.ready
        union all select id, 'scheduled', attempt, type, queue, null from {schema}.scheduled
        union all select id, 'held', attempt, type, queue, reason from {schema}.held
        union all select id, 'running', attempt, type, queue, null from {schema}.running
        union all select id, 'dead', attempt, type, queue, reason from {schema}.dead
        union all select id, state, attempt, type, null, null from {schema}.outcome
                  where state <> 'succeeded'
    ) s
    where %(by_state)s
      and (%(states)s::text[] is null or s.state = any (%(states)s::text[]))
      and (not %(by_kind)s or (s.type = any (%(types)s::int[])
                               and (s.queue is null or s.queue = any (%(queues)s::int[]))))
), tagged as materialized (
    -- A tag is rare, or else soon found.
    select t.id from {schema}.task t
    where t.tags @> array[%(tag)s::text] and t.tags <> '{}' limit 5001
), newest as materialized (
    select n.id
    from (select t.id, t.type, t.queue, t.tags, t.created_at from {schema}.task t
          where t.id >= %(low)s and t.id < %(high)s
            and (%(any_state)s or t.id <= (select max(o.id) from {schema}.outcome o))
          order by t.id desc limit 100000) n
    where %(by_body)s and n.tags @> array[%(tag)s::text] and (select count(*) from tagged) > 5000
      and (not %(by_kind)s or (n.type = any (%(types)s::int[]) and n.queue = any (%(queues)s::int[])))
      and (%(created_from)s::timestamptz is null or n.created_at >= %(created_from)s)
      and (%(created_before)s::timestamptz is null or n.created_at < %(created_before)s)
      and (%(any_state)s or exists (select from {schema}.outcome o
                                    where o.id = n.id and o.state = 'succeeded' offset 0))
    order by n.id desc limit %(limit)s
), chosen as (
    (select b.id from body b
     where %(tag)s::text is null and not %(by_kind)s and b.id >= %(low)s and b.id < %(high)s
     order by b.id desc limit %(limit)s)
    union all
    -- By type or queue: the index `task_kind` has each pair of them in the order of the ids.
    select x.id
    from unnest(%(types)s::int[]) ty (id)
    cross join unnest(%(queues)s::int[]) q (id)
    cross join lateral (
        select b.id from body b
        where b.type = ty.id and b.queue = q.id
          and (b.type, b.queue, b.id) >= (ty.id, q.id, %(low)s::bigint)
          and (b.type, b.queue, b.id) < (ty.id, q.id, %(high)s::bigint)
        order by b.id desc limit %(limit)s
    ) x
    where %(tag)s::text is null and %(by_kind)s
    union all
    -- By a rare tag: all that have it.
    (select t.id
     from (select g.id from tagged g where (select count(*) from tagged) <= 5000 offset 0) g
     join {schema}.task t on t.id = g.id
     where %(tag)s::text is not null and t.id >= %(low)s and t.id < %(high)s
       and (not %(by_kind)s or (t.type = any (%(types)s::int[])
                                and t.queue = any (%(queues)s::int[])))
       and (%(created_from)s::timestamptz is null or t.created_at >= %(created_from)s)
       and (%(created_before)s::timestamptz is null or t.created_at < %(created_before)s)
       and (%(any_state)s
            or (%(by_body)s and exists (select from {schema}.outcome o
                                        where o.id = t.id and o.state = 'succeeded' offset 0))
            or (%(by_state)s and exists (
                select from others s where s.id = t.id and (%(error)s::text is null or (
                (s.attempt > 0 or s.reason is not null) and strpos(lower(coalesce(
                    (select nullif(concat_ws(': ', a.error_type, nullif(a.error_message, '')), '')
                     from {schema}.attempt a where a.id = s.id and a.attempt = s.attempt),
                    s.reason)), lower(%(error)s::text)) > 0))
                offset 0)))
     order by t.id desc limit %(limit)s)
    union all
    select n.id from newest n
    where %(tag)s::text is not null and (select count(*) from newest) >= %(limit)s
    union all
    -- By a tag that many have, and few of the newest.
    (select b.id
     from (select t.id from {schema}.task t
           where %(by_body)s and t.tags @> array[%(tag)s::text] and t.tags <> '{}'
             and (not %(by_kind)s or (t.type = any (%(types)s::int[])
                                      and t.queue = any (%(queues)s::int[])))
             and t.id >= %(low)s and t.id < %(high)s
             and (%(created_from)s::timestamptz is null or t.created_at >= %(created_from)s)
             and (%(created_before)s::timestamptz is null or t.created_at < %(created_before)s)
             and (select count(*) from tagged) > 5000
             and (select count(*) from newest) < %(limit)s
           -- Sorted first where the condition below costs a look into the table each.
           order by case when not %(any_state)s then t.id end desc offset 0) b
     where %(tag)s::text is not null
       and (%(any_state)s or exists (select from {schema}.outcome o
                                     where o.id = b.id and o.state = 'succeeded' offset 0))
     order by b.id desc limit %(limit)s)
    union all
    -- By any other state, and by error, which is what others than succeeded tasks have.
    (select s.id
     from others s
     where (%(tag)s::text is null or (select count(*) from tagged) > 5000)
       and s.id >= %(low)s and s.id < %(high)s
       -- The error first: it lets fewer through than the rest.
       and case when %(error)s::text is null or (
           -- What a task shows as its error: that of its last attempt, else why it is held or dead.
           (s.attempt > 0 or s.reason is not null) and strpos(lower(coalesce(
               (select nullif(concat_ws(': ', a.error_type, nullif(a.error_message, '')), '')
                from {schema}.attempt a where a.id = s.id and a.attempt = s.attempt),
               s.reason)), lower(%(error)s::text)) > 0)
       then not %(by_body_too)s or exists (
           select from {schema}.task t
           where t.id = s.id
             and (not %(by_kind)s or t.queue = any (%(queues)s::int[]))
             and (%(tag)s::text is null or t.tags @> array[%(tag)s::text])
             and (%(created_from)s::timestamptz is null or t.created_at >= %(created_from)s)
             and (%(created_before)s::timestamptz is null or t.created_at < %(created_before)s)
           offset 0) end
     order by s.id desc limit %(limit)s)
)
select t.id, t.type, t.queue, t.state, t.priority, t.attempt, t.max_attempts, t.payload::text,
       t.result::text, t.headers::text, t.tags, t.idempotency_key, t.created_at, t.run_at,
       t.started_at, t.finished_at, t.reason, t.error_type, t.error_message,
       t.progress_done, t.progress_total, t.progress_message, t.progress_at,
       case when %(with_attempts)s
            then (select coalesce(json_agg(a order by a.attempt), '[]')::text
                  from {schema}.attempts a where a.id = t.id)
            else '[]' end as attempts
from (select id from chosen order by id desc limit %(limit)s) c
join {schema}.tasks t on t.id = c.id
order by t.id desc
