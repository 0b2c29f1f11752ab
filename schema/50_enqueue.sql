-- Enqueue, from any language. Every function carries the search_path it was created under, so
-- that callers need not set one, and none of them can be led astray by a caller's.

-- The key of an advisory lock of this schema, for the two-int form: (lock_key(purpose), number).
create function lock_key(purpose text) returns int
language sql stable set search_path from current as $$
    select hashtext(current_schema() || ':' || purpose)
$$;

-- Names become ints once. A new name waits for another transaction that is just adding it.
create function intern_type(p_name text) returns int
language plpgsql set search_path from current as $$
declare v_id int;
begin
    loop
        select id into v_id from type where name = p_name;
        if found then return v_id; end if;
        insert into type (name) values (p_name) on conflict (name) do nothing;
    end loop;
end $$;

create function intern_queue(p_name text) returns int
language plpgsql set search_path from current as $$
declare v_id int;
begin
    loop
        select id into v_id from queue where name = p_name;
        if found then return v_id; end if;
        insert into queue (name) values (p_name) on conflict (name) do nothing;
    end loop;
end $$;

-- Enqueue one task per payload, all with the same options; answers in the order of `p_payloads`.
-- `p_keys` is null or holds one idempotency key (or null) per payload. A key whose task is live
-- gives that task's id with `existing` true. A caller waits for another's open transaction that
-- holds the same key; under REPEATABLE READ it gets 40001 where that one committed.
create function enqueue_many(
    p_type text, p_queue text, p_priority smallint, p_run_at timestamptz, p_delay double precision,
    p_payloads text[], p_keys text[], p_max_attempts smallint, p_timeout double precision,
    p_ttl double precision, p_tags text[], p_headers jsonb
) returns table (id bigint, existing boolean)
language plpgsql set search_path from current as $$
declare
    v_type     int;
    v_queue    int;
    v_run_at   timestamptz;
    v_is_due   boolean;
    v_limit    bigint;
    v_count    int := coalesce(array_length(p_payloads, 1), 0);
    v_ids      bigint[];
    v_fresh    boolean[];
    v_todo     text[];
    v_keys     text[] := '{}';
    v_key_ids  bigint[] := '{}';
    v_new_keys text[] := '{}';
    v_some_keys text[];
    v_some_ids bigint[];
begin
    if v_count = 0 then return; end if;
    select value into v_limit from setting where name = 'max_payload_bytes';
    perform from unnest(p_payloads) as p(body) where octet_length(p.body) > v_limit;
    if found then
        raise exception 'the payload of a task of type % is larger than the limit of % bytes: '
            'pass a reference to the data, or raise max_payload_bytes', p_type, v_limit
            using errcode = 'OR002';
    end if;
    -- The transaction id comes before the task ids: the leader's count relies on that order.
    perform pg_current_xact_id();
    v_type := intern_type(p_type);
    v_queue := intern_queue(p_queue);
    v_is_due := p_run_at is null and coalesce(p_delay, 0) <= 0;
    v_run_at := coalesce(p_run_at, clock_timestamp() + make_interval(secs => coalesce(p_delay, 0)));
    if v_run_at <= clock_timestamp() then v_is_due := true; end if;
    v_ids := array(select nextval(pg_get_serial_sequence('task', 'id')) from generate_series(1, v_count));

    if p_keys is not null then
        v_todo := array(select distinct k from unnest(p_keys) k where k is not null order by k);
        while v_todo <> '{}' loop
            -- In the order of the keys, so that two callers never wait for each other.
            with first as (
                select k.key, min(v_ids[k.n]) as id from unnest(p_keys) with ordinality k(key, n)
                where k.key = any (v_todo) group by k.key
            ), added as (
                insert into idempotency as i (queue, key, id)
                select v_queue, first.key, first.id from first order by first.key
                on conflict on constraint idempotency_pkey do nothing
                returning i.key, i.id
            )
            select coalesce(array_agg(added.key), '{}'), coalesce(array_agg(added.id), '{}')
            into v_some_keys, v_some_ids from added;
            v_new_keys := v_new_keys || v_some_keys;
            v_keys := v_keys || v_some_keys;
            v_key_ids := v_key_ids || v_some_ids;
            -- A statement of its own: the one above cannot see rows committed meanwhile.
            select coalesce(array_agg(i.key), '{}'), coalesce(array_agg(i.id), '{}')
            into v_some_keys, v_some_ids
            from idempotency i
            where i.queue = v_queue and i.key = any (v_todo) and not i.key = any (v_keys);
            v_keys := v_keys || v_some_keys;
            v_key_ids := v_key_ids || v_some_ids;
            -- A task that ended between the two statements is in neither: try again.
            v_todo := array(select k from unnest(v_todo) k where not k = any (v_keys) order by k);
        end loop;
        select array_agg(coalesce(v_key_ids[array_position(v_keys, k.key)], v_ids[k.n]) order by k.n),
               array_agg(k.key is null or (k.key = any (v_new_keys)
                         and v_key_ids[array_position(v_keys, k.key)] = v_ids[k.n]) order by k.n)
        into v_ids, v_fresh
        from unnest(p_keys) with ordinality k(key, n);
    else
        v_fresh := array_fill(true, array[v_count]);
    end if;

    insert into task (id, type, queue, priority, max_attempts, timeout_seconds, run_at, expires_at,
                      payload, headers, tags, idempotency_key)
    select v_ids[p.n], v_type, v_queue, p_priority, p_max_attempts, p_timeout, v_run_at,
           v_run_at + make_interval(secs => p_ttl), p.body::jsonb,
           coalesce(p_headers, '{}'), coalesce(p_tags, '{}'), p_keys[p.n]
    from unnest(p_payloads) with ordinality p(body, n) where v_fresh[p.n];
    if v_is_due then
        insert into ready (id, queue, type, priority)
        select v_ids[n], v_queue, v_type, p_priority
        from generate_series(1, v_count) n where v_fresh[n] order by n;
    else
        insert into scheduled (id, run_at, queue, type, priority)
        select v_ids[n], v_run_at, v_queue, v_type, p_priority
        from generate_series(1, v_count) n where v_fresh[n] order by n;
    end if;
    return query select v_ids[n], not v_fresh[n] from generate_series(1, v_count) n order by n;
end $$;

-- select <schema>.enqueue('email:send', '{"to": "a@example.org"}', priority => 10);
-- Joins the caller's transaction; returns the id of the new or the existing task.
create function enqueue(
    type text, payload jsonb default 'null', queue text default 'default', priority int default 0,
    run_at timestamptz default null, delay interval default null,
    idempotency_key text default null, max_attempts int default null,
    timeout interval default null, ttl interval default null,
    tags text[] default '{}', headers jsonb default '{}'
) returns bigint
language sql set search_path from current as $$
    select e.id from enqueue_many(
        $1, $3, $4::smallint, $5, extract(epoch from $6)::double precision, array[$2::text],
        array[$7], $8::smallint, extract(epoch from $9)::double precision,
        extract(epoch from $10)::double precision, $11, $12) e
$$;

-- The doorbell: notify only if a steward with idle workers sleeps, in a transaction of its own
-- that never waits for the disk. True when it rang.
create function ring() returns boolean
language plpgsql set search_path from current as $$
begin
    perform set_config('synchronous_commit', 'off', true);
    if pg_try_advisory_xact_lock(lock_key('sleep'), 0) then return false; end if;
    perform pg_notify(current_schema() || '_ready', '');
    return true;
end $$;
