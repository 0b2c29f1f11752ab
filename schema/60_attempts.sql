-- The life of an attempt: claim, finish, fail, snooze, release, rescue.
--
-- The fence: every write about an attempt matches task id AND token, a random number that the
-- worker drew and published before it claimed. Rows are locked in the order of their ids.
-- `claim` commits without waiting for the disk (a claim lost in a server crash runs again, and the
-- fence refuses the old one); everything that records an end is durable.

create function handles(p_patterns text[], p_type text) returns boolean
language sql immutable set search_path from current as $$
    select p_type = any (p_patterns)
        or exists (select from unnest(p_patterns) p where right(p, 1) = ':' and starts_with(p_type, p))
$$;

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
                insert into outcome (id, attempt, state, type)
                select id, attempt, 'expired', type from judged where verdict = 'expired'
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

-- Record successes. Answers per task: recorded; already (this very success stands there under
-- this token: a reply was lost); lost (the claim is gone). A cancel that came too late changes
-- nothing: a finished task has succeeded.
create function finish(
    p_ids bigint[], p_tokens bigint[], p_results text[],
    p_walls double precision[], p_cpus double precision[], p_rss bigint[]
) returns table (task_id bigint, answer text)
language plpgsql set search_path from current as $$
#variable_conflict use_column
declare
    v_recorded bigint[];
    v_limit    bigint;
begin
    select value into v_limit from setting where name = 'max_result_bytes';
    perform from unnest(p_results) as p(body) where octet_length(p.body) > v_limit;
    if found then
        raise exception 'a result is larger than the limit of % bytes', v_limit
            using errcode = 'OR002';
    end if;
    with wanted as (
        select * from unnest(p_ids, p_tokens, p_results, p_walls, p_cpus, p_rss)
            as w (id, token, result, wall, cpu, rss)
    ), locked as (
        select r.id from running r join wanted w on w.id = r.id and w.token = r.token
        order by r.id for update of r
    ), gone as (
        delete from running r using locked l where r.id = l.id returning r.*
    ), done as (
        insert into outcome (id, token, started_at, wall_seconds, cpu_seconds, max_rss_bytes,
                             attempt, node, pid, state, slot, result)
        select g.id, g.token, clock_timestamp() - make_interval(secs => w.wall), w.wall, w.cpu,
               w.rss, g.attempt, g.node, g.pid, 'succeeded', g.slot, w.result::jsonb
        from gone g join wanted w on w.id = g.id
        returning id
    ), freed as (
        delete from idempotency i using done where i.id = done.id
    )
    select coalesce(array_agg(done.id), '{}') into v_recorded from done;
    return query
        select w.id,
               case when w.id = any (v_recorded) then 'recorded'
                    when exists (select from outcome o where o.id = w.id and o.token = w.token
                                 and o.state = 'succeeded') then 'already'
                    else 'lost' end
        from unnest(p_ids, p_tokens) as w (id, token);
end $$;

-- What every unhappy end shares: the task, taken out of `running` by the caller, goes on, dies,
-- or, where somebody asked for it meanwhile, is cancelled. `p_delay` is in seconds; 0 puts it
-- back at the place in line that it had.
create function go_on(r running, p_delay double precision, p_dead_reason text) returns void
language plpgsql set search_path from current as $$
begin
    if r.cancel_requested then
        insert into outcome (id, token, started_at, attempt, node, pid, state, slot, type)
        values (r.id, r.token, r.claimed_at, r.attempt, r.node, r.pid, 'cancelled', r.slot, r.type);
        delete from idempotency i where i.id = r.id;
    elsif p_dead_reason is not null then
        insert into dead (id, type, queue, attempt, priority, failures, crashes, losses, reason)
        values (r.id, r.type, r.queue, r.attempt, r.priority, r.failures, r.crashes, r.losses,
                p_dead_reason);
        delete from idempotency i where i.id = r.id;
    elsif p_delay > 0 then
        insert into scheduled (id, run_at, queue, type, attempt, priority, failures, crashes,
                               losses, alone)
        values (r.id, clock_timestamp() + make_interval(secs => p_delay), r.queue, r.type,
                r.attempt, r.priority, r.failures, r.crashes, r.losses, r.alone);
    else
        insert into ready (id, seq, queue, type, attempt, priority, failures, crashes, losses, alone)
        values (r.id, r.seq, r.queue, r.type, r.attempt, r.priority, r.failures, r.crashes,
                r.losses, r.alone);
    end if;
end $$;

-- Record an attempt that started and did not succeed, and let the task go on or die.
-- `p_budget` names the counter to charge (failures, crashes, losses, nothing), `p_limit` its
-- size; a spent budget, or `p_dead_reason`, ends in the dead letter queue. `suspect` charges
-- nothing and has the task run alone next: it ran in a process that died for another's sake.
create function fail(
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

-- Record a handler's wish to stop for good because the task was cancelled.
create function finish_cancelled(
    p_id bigint, p_token bigint, p_error_message text, p_wall double precision,
    p_cpu double precision, p_rss bigint
) returns text
language plpgsql set search_path from current as $$
begin
    update running set cancel_requested = true where id = p_id and token = p_token;
    return fail(p_id, p_token, 'cancelled', 'nothing', 1, 0, null, 'Cancelled', p_error_message,
                null, null, p_wall, p_cpu, p_rss);
end $$;

-- Give back tasks that were claimed and not started: no attempt is charged, no row is written.
-- Returns the ids that went back; the others had left `running` meanwhile.
create function release(p_ids bigint[], p_tokens bigint[]) returns setof bigint
language plpgsql set search_path from current as $$
declare r running;
begin
    for r in
        with wanted as (select * from unnest(p_ids, p_tokens) as w (id, token)),
        locked as (
            select x.id from running x join wanted w on w.id = x.id and w.token = x.token
            order by x.id for update of x
        )
        delete from running x using locked l where x.id = l.id returning x.*
    loop
        perform go_on(r, 0, null);
        return next r.id;
    end loop;
end $$;

-- Take back up to `p_limit` running tasks of nodes that are not alive, charging `losses` for those
-- that had started. A standing query: it does not matter how or when the node was given up.
create function rescue(p_max_losses int, p_limit int)
returns table (task_id bigint, attempt int, node int)
language plpgsql set search_path from current as $$
#variable_conflict use_column
declare r running;
begin
    for r in
        select x.* from running x join node n on n.id = x.node
        where n.state <> 'alive'
        order by x.id limit p_limit for update of x
    loop
        task_id := r.id; attempt := r.attempt; node := r.node;
        if r.started then
            perform fail(r.id, r.token, 'crashed', 'losses', p_max_losses, 0, null, 'NodeLost',
                         'the node that ran this attempt is gone', null,
                         jsonb_build_object('cause', 'node_lost'), null, null, null);
        else
            delete from running x where x.id = r.id;
            perform go_on(r, 0, null);
        end if;
        return next;
    end loop;
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

-- Move scheduled tasks that are due to `ready`, oldest first; returns how many.
create function promote(p_limit int) returns int
language plpgsql set search_path from current as $$
declare v_count int;
begin
    with due as (
        select id from scheduled where run_at <= clock_timestamp()
        order by run_at limit p_limit for update skip locked
    ), moved as (
        delete from scheduled s using due where s.id = due.id returning s.*
    )
    insert into ready (id, queue, type, attempt, priority, failures, crashes, losses, alone)
    select id, queue, type, attempt, priority, failures, crashes, losses, alone
    from moved order by run_at, id;
    get diagnostics v_count = row_count;
    return v_count;
end $$;

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
