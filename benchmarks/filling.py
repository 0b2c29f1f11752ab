"""Fill a database with a past: a million tasks that ended, a hundred thousand that wait.

Written by SQL straight into the tables, since running a million tasks would take hours; what a
list reads is the same. The mix is decided by arithmetic on the ids, so that every run is alike:

    states   of 1,000 ended: 955 succeeded, 20 cancelled, 5 expired, 20 dead; of ten waiting:
             7 ready, 2 scheduled (one of them after a failure), 1 held; and 100 running
    types    ten common ones in three families; `rare:one` with one task in 100,000; `legacy` with a
             quarter of the oldest 300,000 tasks; the newest 60,000 waiting are all `sync`
    queues   five, of which `lonely` has one task in 50,000
    tags     `nightly` on three of ten tasks, `tenant-0` .. `tenant-999`, `once` on three tasks,
             `mail` on those and only those of the types `email:`, `imported` on the oldest 200,000
    errors   every dead task and some others: 40 messages of 5 kinds, with numbers in them
"""

from __future__ import annotations

from orchestrator.db.connection import Session

DAYS = 7

_NAMES = """
insert into queue (name) values ('cpu'), ('mail'), ('low'), ('lonely') on conflict do nothing;
insert into type (name)
select n from unnest(array['email:send', 'email:bulk', 'email:digest', 'image:resize',
    'image:thumbnail', 'image:scan', 'report:daily', 'report:weekly', 'sync', 'cleanup',
    'rare:one', 'legacy']) n;
insert into node (name, host, pid, run, version, is_distributed, state, handlers, queues, workers)
values ('bench', 'bench', 1, 'bench', '0', false, 'alive',
        '{email:,image:,report:,sync,cleanup}', '{*}',
        (select jsonb_agg(jsonb_build_object('slot', 'cpu-' || n, 'pid', 1000 + n, 'state', 'idle'))
         from generate_series(0, 99) n));
create function pg_temp.type_of(i bigint) returns int language sql immutable as $$
    select case when i % 100000 = 77 then 11 when i <= 300000 and i % 4 = 1 then 12
                when i > 1040000 then 9 else 1 + (i * 7 + i / 13) % 10 end::int $$;
create function pg_temp.queue_of(i bigint) returns int language sql immutable as $$
    select case when i % 50000 = 33 then 5 else 1 + (i / 3) % 4 end::int $$;
create function pg_temp.tags_of(i bigint) returns text[] language sql immutable as $$
    select case when i % 10 < 3 then array['nightly'] else '{}' end
        || case when i % 7 = 0 then array['tenant-' || i / 7 % 1000] else '{}' end
        || case when pg_temp.type_of(i) <= 3 then array['mail'] else '{}' end
        || case when i <= 200000 then array['imported'] else '{}' end
        || case when i in (5, 500005, 1000005) then array['once'] else '{}' end $$;
create function pg_temp.error_of(i bigint) returns text language sql immutable as $$
    select case i % 5
        when 0 then 'HTTP 503 from "https://api.example.org/v1/things/' || i % 40 || '"'
        when 1 then 'no such user: ' || i % 40
        when 2 then 'could not convert string to float: ''' || i % 40 || ',5'''
        when 3 then 'connection to 10.0.0.' || i % 40 || ' timed out after 30.0 s'
        else 'list index out of range' end $$;
"""

_ENDED = """
insert into task (id, type, queue, priority, created_at, run_at, payload, tags)
select i, pg_temp.type_of(i), pg_temp.queue_of(i), 0, at, at,
       jsonb_build_object('user', mod(i, 1000), 'url', 'https://example.org/things/' || i),
       pg_temp.tags_of(i)
from (select i, now() - make_interval(secs => %(days)s * 86400.0 * (1 - i::float8 / %(all)s)) as at
      from generate_series(%(low)s::bigint, %(high)s::bigint) i) x;
insert into outcome (id, token, finished_at, started_at, wall_seconds, cpu_seconds, max_rss_bytes,
                     attempt, node, pid, state, slot, result)
select t.id, t.id, t.created_at + interval '2 s', t.created_at + interval '1 s', 1, 0.5, 20000000,
       1, 1, 4711, case when mod(t.id, 1000) < 955 then 'succeeded'
                        when mod(t.id, 1000) < 975 then 'cancelled' else 'expired' end,
       'cpu-0', jsonb_build_object('ok', true)
from task t where t.id between %(low)s and %(high)s and mod(t.id, 1000) < 980;
insert into dead (id, type, queue, attempt, priority, failures, crashes, losses, died_at, reason)
select t.id, t.type, t.queue, 3, 0, 3, 0, 0, t.created_at + interval '1 h',
       'failures budget spent: 3 of 3'
from task t where t.id between %(low)s and %(high)s and mod(t.id, 1000) >= 980;
insert into attempt (id, attempt, token, started_at, ended_at, node, pid, outcome, slot,
                     error_type, error_message, traceback)
select t.id, n, t.id, t.created_at, t.created_at, 1, 4711, 'failed', 'cpu-0',
       (array['HTTPError', 'LookupError', 'ValueError', 'TimeoutError', 'IndexError'])[
           mod(t.id, 5) + 1],
       pg_temp.error_of(t.id),
       repeat('  File "/srv/app/handlers.py", line 42, in handle' || chr(10), 12)
from task t cross join generate_series(1, 3) n
where t.id between %(low)s and %(high)s
      and (mod(t.id, 1000) >= 980 or mod(t.id, 20) = 1 and n = 1);
"""

_WAITING = """
insert into task (id, type, queue, priority, created_at, run_at, payload, tags)
select i, pg_temp.type_of(i), pg_temp.queue_of(i), 0, now(), now(),
       jsonb_build_object('user', mod(i, 1000), 'url', 'https://example.org/things/' || i),
       pg_temp.tags_of(i)
from generate_series(%(low)s::bigint, %(high)s::bigint) i;
insert into ready (id, queue, type, priority)
select id, queue, type, 0 from task where id between %(low)s and %(high)s and mod(id, 10) < 7;
insert into scheduled (id, run_at, queue, type, attempt, priority, failures)
select id, now() + interval '1 h', queue, type, mod(id / 10, 2), 0, mod(id / 10, 2)
from task where id between %(low)s and %(high)s and mod(id, 10) in (7, 8);
insert into held (id, seq, queue, type, attempt, priority, failures, crashes, losses, alone, reason)
select id, id, queue, type, 0, 0, 0, 0, 0, false, 'no handler on the node that met it'
from task where id between %(low)s and %(high)s and mod(id, 10) = 9;
insert into attempt (id, attempt, token, started_at, ended_at, node, pid, outcome, slot,
                     error_type, error_message)
select id, 1, id, now(), now(), 1, 4711, 'failed', 'cpu-0', 'TimeoutError', pg_temp.error_of(id)
from scheduled where id between %(low)s and %(high)s and attempt = 1;
with taken as (
    delete from ready where id in (select id from ready order by id limit 100) returning *
)
insert into running (id, token, seq, queue, type, attempt, node, pid, incarnation, priority,
                     failures, crashes, losses, alone, started, slot)
select id, id, seq, queue, type, attempt + 1, 1, 4711, 0, 0, 0, 0, 0, false, true,
       'cpu-' || row_number() over (order by id) - 1
from taken;
"""

_SETTLED = """
select setval('task_id_seq', (select max(id) from task));
select count_enqueued((select max(id) from task));
update leader set holder = 1, node = 1, term = 1, acquired_at = now(), renewed_at = now();
"""


def fill(session: Session, *, ended: int, waiting: int) -> None:
    """Write the tasks, and let the server know its tables as autovacuum would soon after."""
    step = 100_000
    with session.connection.cursor() as cursor:
        cursor.execute(f"set search_path to {session.schema}")
        cursor.execute(_NAMES)
        for low in range(1, ended + 1, step):
            high = min(low + step - 1, ended)
            cursor.execute(_ENDED, {"low": low, "high": high, "all": ended, "days": DAYS})
        cursor.execute(_WAITING, {"low": ended + 1, "high": ended + waiting})
        cursor.execute(_SETTLED)
        cursor.execute("vacuum (analyze)")
