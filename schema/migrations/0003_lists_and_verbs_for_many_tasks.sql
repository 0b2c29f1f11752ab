-- min_compatible: 1
-- Lists by any filter and counts without a scan: indexes on what people ask for, the type of tasks
-- that ended otherwise than by success, how many tasks of each type are gone; and the verbs that act
-- on many tasks. No function changes its arguments.

-- What retention deletes meanwhile would be missing in `gone`.
lock table outcome in share row exclusive mode;

create index task_kind on task (type, queue, id);
create index task_tags on task using gin (tags) where tags <> '{}';

alter table outcome add column type int;
update outcome o set type = t.type from task t where t.id = o.id and o.state <> 'succeeded';
create index outcome_exception on outcome (type, state, id) where state <> 'succeeded';

alter table statistics add column gone bigint not null default 0;
update statistics s set gone = s.enqueued - (
    select count(*) from task t where t.type = s.type and t.id <= (select up_to from counted));

-- Claim up to `p_limit` tasks from the queues of one worker, in the order of `p_queues` ('*' is
-- every other queue, in an order drawn anew each time), then by priority, then by seq. On the way,
-- rows whose type is paused or not served by `p_patterns` go to `held`, expired ones to `outcome`;
-- `p_refused` are patterns that the worker knows and must not serve. A task marked `alone` is
-- claimed with no other. `p_started` tells that they all run at once; by default a claim of one
-- does. Raises OR001 where the node is not alive.
create or replace function claim(
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

-- What every unhappy end shares: the task, taken out of `running` by the caller, goes on, dies,
-- or, where somebody asked for it meanwhile, is cancelled. `p_delay` is in seconds; 0 puts it
-- back at the place in line that it had.
create or replace function go_on(r running, p_delay double precision, p_dead_reason text) returns void
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

-- Cancel a task. Returns the state it is in afterwards: 'cancelled'; 'running' (the flag is set:
-- however the attempt ends, other than by success, the task is cancelled); or the end that it had
-- already reached. Null where there is no such task.
create or replace function cancel(p_id bigint) returns text
language plpgsql set search_path from current as $$
declare
    v_state   text;
    v_attempt int;
    v_type    int;
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
            when 'ready' then delete from ready where id = p_id
                returning attempt, type into v_attempt, v_type;
            when 'scheduled' then delete from scheduled where id = p_id
                returning attempt, type into v_attempt, v_type;
            when 'held' then delete from held where id = p_id
                returning attempt, type into v_attempt, v_type;
            when 'running' then update running set cancel_requested = true where id = p_id;
            else return v_state;
        end case;
        if found then
            if v_state = 'running' then
                -- The steward of its node sees the flag at its next poll; this makes it soon.
                perform pg_notify(current_schema() || '_ready', '');
                return v_state;
            end if;
            insert into outcome (id, attempt, state, type)
            values (p_id, v_attempt, 'cancelled', v_type);
            delete from idempotency where id = p_id;
            return 'cancelled';
        end if;
    end loop;
end $$;

-- Put dead tasks back into `ready`, in the order of their ids. Answers per task: redriven; conflict
-- (its idempotency `key` is held by the live task `other`; it stays dead); or, where it is not dead,
-- its state, null where there is none.
create function redrive_many(p_ids bigint[])
returns table (task_id bigint, answer text, key text, other bigint)
language plpgsql set search_path from current as $$
declare
    v_dead  bigint[];
    v_keyed bigint[];
    v_won   bigint[];
    v_go    bigint[];
begin
    v_dead := array(select d.id from dead d where d.id = any (p_ids) order by d.id for update);
    v_keyed := array(select t.id from task t
                     where t.id = any (v_dead) and t.idempotency_key is not null);
    -- In the order of the keys, as an enqueue does; of two tasks with one key the older gets it.
    with added as (
        insert into idempotency as i (queue, key, id)
        select t.queue, t.idempotency_key, t.id from task t where t.id = any (v_keyed)
        order by t.queue, t.idempotency_key, t.id
        on conflict on constraint idempotency_pkey do nothing
        returning i.id
    )
    select coalesce(array_agg(added.id), '{}') into v_won from added;
    v_go := array(select x from unnest(v_dead) x where x <> all (v_keyed) or x = any (v_won));
    update task t set run_at = clock_timestamp(),
                      expires_at = clock_timestamp() + (t.expires_at - t.run_at)
    where t.id = any (v_go) and t.expires_at is not null;
    with risen as (
        delete from dead d where d.id = any (v_go) returning d.*
    )
    insert into ready (id, queue, type, attempt, priority)
    select r.id, r.queue, r.type, r.attempt, r.priority from risen r order by r.id;
    return query
        select x.id,
               case when x.id = any (v_go) then 'redriven' when x.id = any (v_dead) then 'conflict'
                    else (select s.state from tasks s where s.id = x.id) end,
               c.key, c.id
        from (select distinct p.id from unnest(p_ids) as p (id)) x
        left join lateral (
            select i.key, i.id from task t
            join idempotency i on i.queue = t.queue and i.key = t.idempotency_key
            where t.id = x.id and x.id = any (v_dead) and x.id <> all (v_go)
        ) c on true
        order by x.id;
end $$;

-- Cancel tasks that are in one of `p_states` (waiting ones or running). Returns per task the state
-- that it is in afterwards, as `cancel` does; null where there is none.
create function cancel_many(p_ids bigint[], p_states text[])
returns table (task_id bigint, answer text)
language plpgsql set search_path from current as $$
declare
    v_left    bigint[] := p_ids;
    v_got     bigint[];
    v_flagged bigint[] := '{}';
begin
    loop
        perform from ready r where r.id = any (v_left) and 'ready' = any (p_states)
        order by r.id for update;
        perform from scheduled s where s.id = any (v_left) and 'scheduled' = any (p_states)
        order by s.id for update;
        perform from held h where h.id = any (v_left) and 'held' = any (p_states)
        order by h.id for update;
        with taken as (
            delete from ready r where r.id = any (v_left) and 'ready' = any (p_states)
            returning r.id, r.attempt, r.type
        ), put_off as (
            delete from scheduled s where s.id = any (v_left) and 'scheduled' = any (p_states)
            returning s.id, s.attempt, s.type
        ), kept as (
            delete from held h where h.id = any (v_left) and 'held' = any (p_states)
            returning h.id, h.attempt, h.type
        ), ended as (
            insert into outcome as o (id, attempt, state, type)
            select x.id, x.attempt, 'cancelled', x.type
            from (select * from taken union all select * from put_off union all select * from kept) x
            returning o.id
        ), freed as (
            delete from idempotency i using ended e where i.id = e.id
        )
        select coalesce(array_agg(e.id), '{}') into v_got from ended e;
        v_left := array(select x from unnest(v_left) x where x <> all (v_got));
        perform from running r where r.id = any (v_left) and 'running' = any (p_states)
        order by r.id for update;
        with flagged as (
            update running r set cancel_requested = true
            where r.id = any (v_left) and 'running' = any (p_states) returning r.id
        )
        select coalesce(array_agg(f.id), '{}') into v_got from flagged f;
        v_flagged := v_flagged || v_got;
        v_left := array(select x from unnest(v_left) x where x <> all (v_got));
        -- What is now where we may take it had moved between our statements.
        exit when not exists (select from tasks t
                              where t.id = any (v_left) and t.state = any (p_states));
    end loop;
    if v_flagged <> '{}' then
        perform pg_notify(current_schema() || '_ready', '');
    end if;
    return query
        select x.id, (select s.state from tasks s where s.id = x.id)
        from (select distinct p.id from unnest(p_ids) as p (id)) x order by x.id;
end $$;

-- Delete tasks that are in one of `p_states`, never running ones, and everything about them.
-- Answers per task: deleted; or the state that it is in, null where there is none.
create function delete_many(p_ids bigint[], p_states text[])
returns table (task_id bigint, answer text)
language plpgsql set search_path from current as $$
declare
    v_states  text[] := array_remove(p_states, 'running');
    v_left    bigint[] := p_ids;
    v_got     bigint[];
    v_deleted bigint[] := '{}';
begin
    loop
        perform from ready r where r.id = any (v_left) and 'ready' = any (v_states)
        order by r.id for update;
        perform from scheduled s where s.id = any (v_left) and 'scheduled' = any (v_states)
        order by s.id for update;
        perform from held h where h.id = any (v_left) and 'held' = any (v_states)
        order by h.id for update;
        perform from dead d where d.id = any (v_left) and 'dead' = any (v_states)
        order by d.id for update;
        perform from outcome o where o.id = any (v_left) and o.state = any (v_states)
        order by o.id for update;
        with a as (
            delete from ready r where r.id = any (v_left) and 'ready' = any (v_states)
            returning r.id
        ), b as (
            delete from scheduled s where s.id = any (v_left) and 'scheduled' = any (v_states)
            returning s.id
        ), c as (
            delete from held h where h.id = any (v_left) and 'held' = any (v_states)
            returning h.id
        ), d as (
            delete from dead x where x.id = any (v_left) and 'dead' = any (v_states)
            returning x.id
        ), e as (
            delete from outcome o where o.id = any (v_left) and o.state = any (v_states)
            returning o.id
        )
        select coalesce(array_agg(x.id), '{}') into v_got
        from (select id from a union all select id from b union all select id from c
              union all select id from d union all select id from e) x;
        v_deleted := v_deleted || v_got;
        v_left := array(select x from unnest(v_left) x where x <> all (v_got));
        exit when not exists (select from tasks t
                              where t.id = any (v_left) and t.state = any (v_states));
    end loop;
    perform discard(v_deleted);
    return query
        select x.id, case when x.id = any (v_deleted) then 'deleted'
                          else (select s.state from tasks s where s.id = x.id) end
        from (select distinct p.id from unnest(p_ids) as p (id)) x order by x.id;
end $$;

-- Delete what is left of tasks that were taken out of their state table, and keep the totals true.
create function discard(p_ids bigint[]) returns void
language plpgsql set search_path from current as $$
declare v_up_to bigint;
begin
    delete from idempotency i where i.id = any (p_ids);
    delete from attempt a where a.id = any (p_ids);
    delete from progress p where p.id = any (p_ids);
    -- The leader's count waits: a task that it has not counted yet is counted here.
    select c.up_to into v_up_to from counted c for share;
    with bodies as (
        delete from task t where t.id = any (p_ids) returning t.id, t.type
    )
    insert into statistics as s (type, enqueued, gone)
    select b.type, count(*) filter (where b.id > v_up_to), count(*) from bodies b
    group by b.type order by b.type
    on conflict (type) do update
        set enqueued = s.enqueued + excluded.enqueued, gone = s.gone + excluded.gone;
end $$;

-- The range of ids, `low` included and `high` not, that holds every task created at or after
-- `p_from` and before `p_before` (null: no bound); null where there is no such bound. Tasks outside
-- the times may lie in it as well.
--
-- Ids are drawn before their tasks are created: by milliseconds, as a rule, but an enqueue with an
-- idempotency key may wait in between for another's transaction. So every task with a later id than
-- one that was due when it was enqueued (`run_at` is read before the id is drawn) was created after
-- that `run_at`. Elsewhere that wait is taken to be shorter than an hour.
create function ids_created(p_from timestamptz, p_before timestamptz, out low bigint, out high bigint)
language plpgsql stable set search_path from current as $$
declare
    v_left  bigint;
    v_right bigint;
    v_mid   bigint;
    r       record;
begin
    if p_before is not null then
        select min(id), max(id) into v_left, v_right from task;
        while v_left <= v_right loop
            v_mid := v_left + (v_right - v_left) / 2;
            select t.id, t.created_at, t.run_at into r from task t
            where t.id >= v_mid order by t.id limit 1;
            if r.run_at >= p_before and r.run_at <= r.created_at
               or r.created_at >= p_before + interval '1 hour' then
                high := r.id;
                v_right := v_mid - 1;
            else
                v_left := r.id + 1;
            end if;
        end loop;
    end if;
    if p_from is not null then
        select min(id), max(id) into v_left, v_right from task;
        while v_left <= v_right loop
            v_mid := v_left + (v_right - v_left) / 2;
            select t.id, t.created_at into r from task t where t.id >= v_mid order by t.id limit 1;
            if r.created_at < p_from - interval '1 hour' then
                low := r.id + 1;
                v_left := r.id + 1;
            else
                v_right := v_mid - 1;
            end if;
        end loop;
    end if;
end $$;

-- What an error message is when its numbers and quoted parts are blanked, so that messages of one
-- kind are equal: the first line, at most 200 characters; what stands in quotes, UUIDs, and words
-- with a digit in them become "#". Without a search_path of its own, which would keep it from being
-- inlined: nothing in it is ours.
create function error_shape(p_message text) returns text
language sql immutable as $$
    select regexp_replace(regexp_replace(regexp_replace(
        left(split_part(p_message, E'\n', 1), 200),
        '(?<!\w)(''[^'']*''|"[^"]*"|`[^`]*`)(?!\w)', '#', 'g'),
        '[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}', '#', 'g'),
        '[[:alnum:]]*[0-9][[:alnum:]]*', '#', 'g')
$$;

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
    perform discard(v_ids);
    deleted := cardinality(v_ids);
    return next;
end $$;
