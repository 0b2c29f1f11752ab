-- Nodes and what the leader does for all of them.

-- A beat of a node; false where it was marked dead meanwhile and must register anew.
create function beat(p_node int, p_workers jsonb) returns boolean
language plpgsql set search_path from current as $$
begin
    update node set beat_at = clock_timestamp(), workers = p_workers
    where id = p_node and state = 'alive';
    return found;
end $$;

-- Mark a node dead, if it has not beaten since the beat that was judged.
create function mark_dead(p_node int, p_judged timestamptz) returns boolean
language plpgsql set search_path from current as $$
begin
    update node set state = 'dead' where id = p_node and state = 'alive' and beat_at = p_judged;
    return found;
end $$;

-- Add to the totals the tasks with ids up to `p_up_to`, which must all be decided (committed or
-- not): position and totals move in one transaction. Returns how many were counted.
create function count_enqueued(p_up_to bigint) returns bigint
language plpgsql set search_path from current as $$
declare
    v_from  bigint;
    v_count bigint;
begin
    select up_to into v_from from counted for update;
    if p_up_to <= v_from then return 0; end if;
    with fresh as (
        select type, count(*) as n from task where id > v_from and id <= p_up_to group by type
    ), added as (
        insert into statistics as s (type, enqueued) select type, n from fresh
        on conflict (type) do update set enqueued = s.enqueued + excluded.enqueued
    )
    select coalesce(sum(n), 0) into v_count from fresh;
    update counted set up_to = p_up_to;
    return v_count;
end $$;

-- Delete up to `p_limit` tasks, in the order of ids after `p_after`, that ended before `p_cutoff`
-- and were counted: outcome, attempts and body. Dead and live tasks are never touched. Returns how
-- many went and the last id looked at (null: the end of the table).
create function prune(p_after bigint, p_cutoff timestamptz, p_limit int)
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
