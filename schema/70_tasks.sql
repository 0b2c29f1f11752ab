-- What people ask of tasks that move meanwhile: cancel and redrive. Locate in one snapshot, act
-- on the row, and begin again where it had moved in between.

-- Cancel a task. Returns the state it is in afterwards: 'cancelled'; 'running' (the flag is set:
-- however the attempt ends, other than by success, the task is cancelled); or the end that it had
-- already reached. Null where there is no such task.
create function cancel(p_id bigint) returns text
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

-- Put a dead task back into `ready`: budgets at zero, attempts go on counting. True where it was
-- dead. Raises OR003 where its idempotency key is held by another live task.
create function redrive(p_id bigint) returns boolean
language plpgsql set search_path from current as $$
declare
    r      dead;
    v_body task;
    v_other bigint;
begin
    delete from dead where id = p_id returning * into r;
    if not found then return false; end if;
    select * into v_body from task where id = p_id;
    if v_body.idempotency_key is not null then
        insert into idempotency (queue, key, id) values (v_body.queue, v_body.idempotency_key, p_id)
        on conflict do nothing;
        if not found then
            select id into v_other from idempotency
            where queue = v_body.queue and key = v_body.idempotency_key;
            raise exception 'task % cannot be redriven: its idempotency key % is held by task %',
                p_id, v_body.idempotency_key, v_other using errcode = 'OR003';
        end if;
    end if;
    -- Its time to live counts anew, or a task that died of old age could never run again.
    update task set run_at = clock_timestamp(),
                    expires_at = clock_timestamp() + (expires_at - run_at)
    where id = p_id and expires_at is not null;
    insert into ready (id, queue, type, attempt, priority)
    values (r.id, r.queue, r.type, r.attempt, r.priority);
    return true;
end $$;
