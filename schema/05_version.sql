-- Which version of the schema this is. The first file: everything after it is version 1, and each
-- file of migrations/ adds one. orchestrator/db/migrate.py writes and reads these rows.

create table schema_version (
    version        int primary key,
    -- The oldest version of the program that can work on the schema as this version left it.
    min_compatible int not null,
    name           text not null,
    checksum       text not null,
    applied_at     timestamptz not null default clock_timestamp(),
    constraint schema_version_order check (min_compatible between 1 and version)
);
