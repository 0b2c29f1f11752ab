-- What ended: outcomes of tasks, and one row for every attempt that did not succeed.

create table outcome (
    id            bigint primary key,
    token         bigint,                    -- null: ended without an attempt
    finished_at   timestamptz not null default clock_timestamp(),
    started_at    timestamptz,
    wall_seconds  real,
    cpu_seconds   real,
    max_rss_bytes bigint,
    attempt       int not null,
    node          int,
    pid           int,
    state         text not null check (state in ('succeeded', 'cancelled', 'expired')),
    slot          text,
    result        jsonb,
    type          int                        -- null where it succeeded: nobody asks
);
-- Serves the counts of what ended otherwise than by success; a success does not touch it.
create index outcome_exception on outcome (type, state, id) where state <> 'succeeded';

create table attempt (
    id            bigint not null,
    attempt       int not null,
    token         bigint not null,
    started_at    timestamptz not null,
    ended_at      timestamptz not null default clock_timestamp(),
    cpu_seconds   real,
    max_rss_bytes bigint,
    node          int,
    pid           int,
    outcome       text not null,
    slot          text,
    error_type    text,
    error_message text,
    traceback     text,
    crash         jsonb,
    primary key (id, attempt)
);
