-- Who is there: nodes, the leader, and what the leader counts.

create table node (
    id            int generated always as identity primary key,
    name          text not null,
    host          text not null,
    pid           int not null,
    run           text not null,             -- random per supervisor: the marker of its processes
    version       text not null,
    lock_path     text,                      -- flock held by the supervisor while it lives
    is_distributed boolean not null,
    started_at    timestamptz not null default clock_timestamp(),
    beat_at       timestamptz not null default clock_timestamp(),
    state         text not null default 'alive' check (state in ('alive', 'dead', 'left')),
    workers       jsonb not null default '[]',
    handlers      text[] not null default '{}',
    queues        text[] not null default '{}'
);
create index node_alive on node (id) where state = 'alive';

create table leader (
    is_single  boolean primary key default true check (is_single),
    term       bigint not null default 0,
    holder     bigint,                       -- random per process that leads
    node       int,
    acquired_at timestamptz,
    renewed_at timestamptz
);
insert into leader default values;

-- Totals per type since the schema was made: `enqueued` counts all ids up to `counted.up_to`, and
-- `gone` those of them whose body was deleted since. So the tasks that are kept are known without
-- a scan, and those that succeeded are what the other states leave of them.
create table statistics (
    type     int primary key,
    enqueued bigint not null default 0,
    gone     bigint not null default 0
);

create table counted (
    is_single boolean primary key default true check (is_single),
    up_to     bigint not null default 0
);
insert into counted default values;
