-- min_compatible: 1
-- Progress of running tasks, claims by pools that run many tasks at once, suspects, and a notice to
-- the stewards when a running task is to be cancelled. The functions that gained arguments gained
-- them with defaults, so that programs of version 1 call them as before.

-- What a handler said last about how far it is. Written while it runs, kept with the task.
create table progress (
    id          bigint primary key,
    attempt     int not null,
    done        double precision not null,
    total       double precision,
    message     text not null,
    reported_at timestamptz not null default clock_timestamp()
) with (fillfactor = 50);

create or replace view tasks as
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

drop function claim(int, text, int, int, bigint, text[], text[], int);

-- Claim up to `p_limit` tasks from the queues of one worker, in the order of `p_queues` ('*' is
-- every other queue, in an order drawn anew each time), then by priority, then by seq. On the way,
-- rows whose type is paused or not served by `p_patterns` go to `held`, expired ones to `outcome`;
-- `p_refused` are patterns that the worker knows and must not serve. A task marked `alone` is
-- claimed with no other. `p_started` tells that they all run at once; by default a claim of one
-- does. Raises OR001 where the node is not alive.
create function claim(
    p_node int, p_slot text, p_incarnation int, p_pid int, p_token bigint,
    p_queues text[], p_patterns text[], p_limit int,
    p_refused text[] default '{}', p_started boolean default null
) returns table (
    task_id bigint, attempt int, type text, queue text, priority smallint, payload text,
    headers text, max_attempts smallint, timeout_seconds double precision, failures smallint,
    crashes smallint, losses smallint, alone boolean, created_at timestamptz,
    waited_seconds double precision
)
language plpgsql
set search_path from current
set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_column
declare
    v_queue    record;
    v_ids      bigint[];
    v_alone    boolean[];
    v_first    int;
    v_claimed  bigint[] := '{}';
    v_taken    bigint[];
begin
    perform set_config('synchronous_commit', 'off', true);
    perform from node n where n.id = p_node and n.state = 'alive';
    if not found then
        raise exception 'node % is not registered as alive: it must not claim', p_node
            using errcode = 'OR001';
    end if;
    for v_queue in
        select q.id from queue q
        where not q.is_paused and ('*' = any (p_queues) or q.name = any (p_queues))
        order by coalesce(array_position(p_queues, q.name), array_position(p_queues, '*')), random()
    loop
        loop
            select coalesce(array_agg(x.id order by x.priority desc, x.seq), '{}'),
                   coalesce(array_agg(x.alone order by x.priority desc, x.seq), '{}')
            into v_ids, v_alone
            from (select r.id, r.priority, r.seq, r.alone from ready r
                  where r.queue = v_queue.id
                  order by r.priority desc, r.seq
                  limit p_limit - cardinality(v_claimed)
                  for update skip locked) x;
            exit when v_ids = '{}';
            v_first := array_position(v_alone, true);
            if v_first = 1 then
                -- With others claimed already it stays for the next claim.
                if v_claimed <> '{}' then exit; end if;
                v_ids := v_ids[1:1];
            elsif v_first > 1 then
                v_ids := v_ids[1:v_first - 1];
            end if;

            with taken as (
                delete from ready r where r.id = any (v_ids) returning r.*
            ), judged as (
                select t.*, b.expires_at,
                       case when b.expires_at <= clock_timestamp() then 'expired'
                            when ty.is_paused then 'the task type is paused'
                            when handles(p_patterns, ty.name) then null
                            when handles(p_refused, ty.name)
                                then 'its handler is a `def`, met by an async pool: serve its '
                                     'queue by a pool with mode = "process"'
                            else 'no handler on the node that met it'
                       end as verdict
                from taken t join task b on b.id = t.id join type ty on ty.id = t.type
            ), expired as (
                insert into outcome (id, attempt, state)
                select id, attempt, 'expired' from judged where verdict = 'expired'
                returning id
            ), freed as (
                delete from idempotency i using expired where i.id = expired.id
            ), holding as (
                insert into held (id, seq, queue, type, attempt, priority, failures, crashes,
                                  losses, alone, reason)
                select id, seq, queue, type, attempt, priority, failures, crashes, losses, alone,
                       verdict
                from judged where verdict <> 'expired'
            ), moved as (
                insert into running (id, token, seq, queue, type, attempt, node, pid, incarnation,
                                     priority, failures, crashes, losses, alone, started, slot)
                select id, p_token, seq, queue, type, attempt + 1, p_node, p_pid, p_incarnation,
                       priority, failures, crashes, losses, alone,
                       coalesce(p_started, p_limit = 1), p_slot
                from judged where verdict is null
                returning id
            )
            select coalesce(array_agg(moved.id), '{}') into v_taken from moved;
            v_claimed := v_claimed || v_taken;
            exit when cardinality(v_claimed) >= p_limit or (v_first = 1 and v_taken <> '{}');
        end loop;
        exit when cardinality(v_claimed) >= p_limit or v_first >= 1 and v_claimed <> '{}';
    end loop;
    if v_claimed = '{}' then return; end if;
    return query
        select r.id, r.attempt, ty.name, q.name, r.priority, b.payload::text, b.headers::text,
               b.max_attempts, b.timeout_seconds, r.failures, r.crashes, r.losses, r.alone,
               b.created_at,
               extract(epoch from r.claimed_at - b.run_at)::double precision
        from running r
        join task b on b.id = r.id
        join type ty on ty.id = r.type
        join queue q on q.id = r.queue
        where r.id = any (v_claimed)
        order by coalesce(array_position(p_queues, q.name), array_position(p_queues, '*')), q.id,
                 r.priority desc, r.seq;
end $$;

drop function unhold(text[], int);

-- Move held tasks of `p_queues` (null or '*': every queue) whose type is served by `p_patterns` and
-- not paused back to `ready`, with the place in line and the counters that they had; returns how
-- many.
create function unhold(p_patterns text[], p_limit int, p_queues text[] default null) returns int
language plpgsql set search_path from current as $$
declare v_count int;
begin
    with served as (
        select t.id from type t where not t.is_paused and handles(p_patterns, t.name)
    ), chosen as (
        select h.id from held h
        where h.type = any (select id from served)
          and (p_queues is null or '*' = any (p_queues)
               or h.queue = any (select q.id from queue q where q.name = any (p_queues)))
        order by h.id limit p_limit for update skip locked
    ), moved as (
        delete from held h using chosen where h.id = chosen.id returning h.*
    )
    insert into ready (id, seq, queue, type, attempt, priority, failures, crashes, losses, alone)
    select id, seq, queue, type, attempt, priority, failures, crashes, losses, alone from moved;
    get diagnostics v_count = row_count;
    return v_count;
end $$;

-- Keep what handlers say about how far they are, one row per task: the last word wins. Fenced like
-- an end, and committed without waiting for the disk. Returns how many attempts still run.
create function report_progress(
    p_ids bigint[], p_tokens bigint[], p_dones double precision[], p_totals double precision[],
    p_messages text[]
) returns int
language plpgsql set search_path from current as $$
declare v_count int;
begin
    perform set_config('synchronous_commit', 'off', true);
    insert into progress as p (id, attempt, done, total, message)
    select r.id, r.attempt, w.done, w.total, w.message
    from unnest(p_ids, p_tokens, p_dones, p_totals, p_messages)
        as w (id, token, done, total, message)
    join running r on r.id = w.id and r.token = w.token
    order by r.id
    on conflict (id) do update
        set attempt = excluded.attempt, done = excluded.done, total = excluded.total,
            message = excluded.message, reported_at = excluded.reported_at;
    get diagnostics v_count = row_count;
    return v_count;
end $$;

-- Record an attempt that started and did not succeed, and let the task go on or die.
-- `p_budget` names the counter to charge (failures, crashes, losses, nothing), `p_limit` its
-- size; a spent budget, or `p_dead_reason`, ends in the dead letter queue. `suspect` charges
-- nothing and has the task run alone next: it ran in a process that died for another's sake.
create or replace function fail(
    p_id bigint, p_token bigint, p_outcome text, p_budget text, p_limit int,
    p_delay double precision, p_dead_reason text, p_error_type text, p_error_message text,
    p_traceback text, p_crash jsonb, p_wall double precision, p_cpu double precision, p_rss bigint
) returns text
language plpgsql set search_path from current as $$
declare
    r       running;
    v_spent int;
    v_reason text := p_dead_reason;
begin
    delete from running where id = p_id and token = p_token returning * into r;
    if not found then
        perform from attempt a where a.id = p_id and a.token = p_token and a.outcome = p_outcome;
        return case when found then 'already' else 'lost' end;
    end if;
    insert into attempt (id, attempt, token, started_at, cpu_seconds, max_rss_bytes, node, pid,
                         outcome, slot, error_type, error_message, traceback, crash)
    values (r.id, r.attempt, r.token,
            coalesce(clock_timestamp() - make_interval(secs => p_wall), r.claimed_at),
            p_cpu, p_rss, r.node, r.pid, p_outcome, r.slot, p_error_type, p_error_message,
            p_traceback, p_crash);
    case p_budget
        when 'failures' then r.failures := r.failures + 1; v_spent := r.failures;
        when 'crashes' then r.crashes := r.crashes + 1; v_spent := r.crashes; r.alone := true;
        when 'losses' then r.losses := r.losses + 1; v_spent := r.losses;
        when 'suspect' then r.alone := true; v_spent := -1;
        else v_spent := -1;
    end case;
    if v_reason is null and v_spent >= p_limit then
        v_reason := p_budget || ' budget spent: ' || v_spent || ' of ' || p_limit;
    end if;
    perform go_on(r, p_delay, v_reason);
    return 'recorded';
end $$;

-- Cancel a task. Returns the state it is in afterwards: 'cancelled'; 'running' (the flag is set:
-- however the attempt ends, other than by success, the task is cancelled); or the end that it had
-- already reached. Null where there is no such task.
create or replace function cancel(p_id bigint) returns text
language plpgsql set search_path from current as $$
declare
    v_state   text;
    v_attempt int;
begin
    loop
        select s.state, s.attempt into v_state, v_attempt from (
            select 'ready' as state, attempt from ready where id = p_id
            union all select 'scheduled', attempt from scheduled where id = p_id
            union all select 'held', attempt from held where id = p_id
            union all select 'running', attempt from running where id = p_id
            union all select 'dead', attempt from dead where id = p_id
            union all select state, attempt from outcome where id = p_id
        ) s;
        if not found then return null; end if;
        case v_state
            when 'ready' then delete from ready where id = p_id returning attempt into v_attempt;
            when 'scheduled' then delete from scheduled where id = p_id returning attempt into v_attempt;
            when 'held' then delete from held where id = p_id returning attempt into v_attempt;
            when 'running' then update running set cancel_requested = true where id = p_id;
            else return v_state;
        end case;
        if found then
            if v_state = 'running' then
                -- The steward of its node sees the flag at its next poll; this makes it soon.
                perform pg_notify(current_schema() || '_ready', '');
                return v_state;
            end if;
            insert into outcome (id, attempt, state) values (p_id, v_attempt, 'cancelled');
            delete from idempotency where id = p_id;
            return 'cancelled';
        end if;
    end loop;
end $$;

-- Delete up to `p_limit` tasks, in the order of ids after `p_after`, that ended before `p_cutoff`
-- and were counted: outcome, attempts and body. Dead and live tasks are never touched. Returns how
-- many went and the last id looked at (null: the end of the table).
create or replace function prune(p_after bigint, p_cutoff timestamptz, p_limit int)
returns table (deleted int, last_id bigint)
language plpgsql set search_path from current as $$
declare v_ids bigint[];
begin
    select max(x.id), coalesce(array_agg(x.id order by x.id) filter (where x.finished_at < p_cutoff), '{}')
    into last_id, v_ids
    from (select o.id, o.finished_at from outcome o
          where o.id > p_after and o.id <= (select up_to from counted)
          order by o.id limit p_limit) x;
    delete from outcome o where o.id = any (v_ids);
    delete from attempt a where a.id = any (v_ids);
    delete from progress p where p.id = any (v_ids);
    delete from task t where t.id = any (v_ids);
    deleted := cardinality(v_ids);
    return next;
end $$;
