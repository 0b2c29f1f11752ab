-- One row per task and one row per attempt, put together from the state tables in one snapshot.

create view tasks as
select t.id, ty.name as type, q.name as queue, s.state, t.priority, s.attempt, t.max_attempts,
       t.timeout_seconds, t.payload, t.headers, t.tags, t.idempotency_key, t.created_at,
       coalesce(s.run_at, t.run_at) as run_at, t.expires_at,
       case s.state when 'dead' then a.started_at else s.started_at end as started_at,
       s.finished_at, s.result,
       s.failures, s.crashes, s.losses, s.alone, s.reason, s.cancel_requested,
       a.error_type, a.error_message,
       p.done as progress_done, p.total as progress_total, p.message as progress_message,
       p.reported_at as progress_at
from task t
join (
    select id, 'ready' as state, attempt, null::timestamptz as run_at,
           null::timestamptz as started_at, null::timestamptz as finished_at,
           null::jsonb as result, failures, crashes, losses, alone, null::text as reason,
           false as cancel_requested
    from ready
    union all
    select id, 'scheduled', attempt, run_at, null, null, null, failures, crashes, losses, alone,
           null, false
    from scheduled
    union all
    select id, 'held', attempt, null, null, null, null, failures, crashes, losses, alone,
           reason, false
    from held
    union all
    select id, 'running', attempt, null, claimed_at, null, null, failures, crashes, losses, alone,
           null, cancel_requested
    from running
    union all
    select id, 'dead', attempt, null, null, died_at, null, failures, crashes, losses, false,
           reason, false
    from dead
    union all
    select id, state, attempt, null, started_at, finished_at, result, null, null, null, false,
           null, false
    from outcome
) s on s.id = t.id
join type ty on ty.id = t.type
join queue q on q.id = t.queue
left join attempt a on a.id = s.id and a.attempt = s.attempt
left join progress p on p.id = s.id and p.attempt = s.attempt;

create view attempts as
select x.id, x.attempt, x.outcome, x.error_type, x.error_message, x.traceback, x.started_at,
       x.ended_at, n.name as node, x.slot, x.pid, x.crash, x.cpu_seconds, x.max_rss_bytes
from (
    select id, attempt, outcome, error_type, error_message, traceback, started_at, ended_at,
           node, slot, pid, crash, cpu_seconds, max_rss_bytes
    from attempt
    union all
    select id, attempt, state, null, null, null, started_at, finished_at,
           node, slot, pid, null, cpu_seconds, max_rss_bytes
    from outcome where state = 'succeeded'
    union all
    select id, attempt, null, null, null, null, claimed_at, null,
           node, slot, pid, null, null, null
    from running
) x
left join node n on n.id = x.node;
