"""The version of the schema: installing it, migrating it, judging it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from orchestrator.db import migrate
from orchestrator.db.connection import Session, connect
from orchestrator.db.statements import schema_directory
from orchestrator.errors import SchemaError
from tests.sql import rows

VERSION_1 = Path(__file__).parent.parent / "data" / "schema_v1.sql"

# Everything in a schema that a migration could forget, as text, by name.
CATALOG = """
select 'column ' || c.relname || '.' || a.attname,
       concat_ws(' ', c.relkind, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity,
                 a.attgenerated, a.attstorage, pg_get_expr(d.adbin, d.adrelid))
from pg_attribute a join pg_class c on c.oid = a.attrelid
left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum
where c.relnamespace = %(schema)s::regnamespace and a.attnum > 0 and not a.attisdropped
union all
select 'relation ' || relname, concat_ws(' ', relkind, relpersistence, reloptions::text)
from pg_class where relnamespace = %(schema)s::regnamespace
union all
select 'index ' || indexname, indexdef from pg_indexes where schemaname = %(schema)s
union all
select 'constraint ' || conrelid::regclass || '.' || conname, pg_get_constraintdef(oid)
from pg_constraint where connamespace = %(schema)s::regnamespace and contype <> 'n'
union all
select 'function ' || oid::regprocedure, pg_get_functiondef(oid)
from pg_proc where pronamespace = %(schema)s::regnamespace
union all
select 'view ' || viewname, definition from pg_views where schemaname = %(schema)s
union all
select 'sequence ' || sequencename, concat_ws(' ', data_type, start_value, increment_by, cycle)
from pg_sequences where schemaname = %(schema)s
union all
select 'trigger ' || tgrelid::regclass || '.' || tgname, pg_get_triggerdef(t.oid)
from pg_trigger t join pg_class c on c.oid = t.tgrelid
where c.relnamespace = %(schema)s::regnamespace and not tgisinternal
order by 1
"""
# What an installation writes into its tables.
SEEDS = ("setting", "leader", "counted", "queue")


@pytest.fixture
def session(empty_dsn: str) -> Iterator[Session]:
    opened = connect(empty_dsn, schema="orchestrator", application_name="tests")
    yield opened
    opened.close()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A copy of the schema's files to which a test may add migrations."""
    copy = tmp_path / "schema"
    shutil.copytree(schema_directory(), copy)
    return copy


def catalog(session: Session) -> dict[str, str]:
    with session.connection.cursor() as cursor:
        cursor.execute(f"set search_path to {session.schema}")
        cursor.execute(CATALOG, {"schema": session.schema})
        found = dict(cursor.fetchall())
        for table in SEEDS:
            cursor.execute(f"select to_jsonb(t) - 'created_at' from {table} t order by 1")
            found[f"rows of {table}"] = repr(cursor.fetchall())
    return found


def fresh_catalog(session: Session, directory: Path | None = None) -> dict[str, str]:
    """The catalog of a fresh installation, which is dropped again."""
    migrate.migrate(session, directory=directory)
    found = catalog(session)
    drop(session)
    return found


def drop(session: Session) -> None:
    execute(session, f"drop schema {session.schema} cascade")


def execute(session: Session, script: str, *parameters: Any) -> None:
    with session.connection.cursor() as cursor:
        cursor.execute(script, parameters or None)


def versions(session: Session) -> list[tuple[Any, ...]]:
    return rows(session, "select version, min_compatible, name from schema_version order by 1")


def add_migration(directory: Path, name: str, script: str, *, min_compatible: int = 1) -> Path:
    path = directory / "migrations" / f"{name}.sql"
    path.write_text(f"-- min_compatible: {min_compatible}\n{script}\n")
    return path


def named(nth: int, name: str) -> str:
    """The name of the nth migration after those that ship."""
    return f"{migrate.VERSION + nth:04}_{name}"


# -- the schema that ships


def test_migrated_schema_equals_a_fresh_one(session: Session) -> None:
    fresh = fresh_catalog(session)

    execute(session, VERSION_1.read_text(encoding="utf-8"))
    migrate.migrate(session)

    assert catalog(session) == fresh
    assert rows(session, "select max(version) from schema_version") == [(migrate.VERSION,)]


def test_printed_sql_installs_the_same_as_migrate(session: Session) -> None:
    fresh = fresh_catalog(session)

    execute(session, migrate.print_sql("orchestrator"))

    assert catalog(session) == fresh
    assert migrate.pending(session) == []
    migrate.check(session)


def test_any_name_will_do_for_a_schema(session: Session) -> None:
    session.schema = 'we"ird; name'

    migrate.migrate(session)

    migrate.check(session)


def test_version_of_the_program_is_that_of_the_last_migration() -> None:
    files = list((schema_directory() / "migrations").glob("*.sql"))

    assert len(files) + 1 == migrate.VERSION


def test_missing_schema_is_refused_with_what_to_run(session: Session) -> None:
    with pytest.raises(SchemaError, match=r"not installed.*orchestratorctl migrate"):
        migrate.check(session)


def test_eight_migrators_at_once_install_one_schema(empty_dsn: str) -> None:
    def run(_: int) -> list[str]:
        session = connect(empty_dsn, schema="orchestrator", application_name="tests")
        try:
            return migrate.migrate(session)
        finally:
            session.close()

    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(run, range(8)))

    assert sorted(done) == [[]] * 7 + [["0001_base"]]


def test_stricter_isolation_of_the_database_does_not_confuse_migrators(empty_dsn: str) -> None:
    first = connect(empty_dsn, schema="orchestrator", application_name="tests")
    execute(
        first,
        "do $$ begin execute format('alter database %I set default_transaction_isolation to "
        "serializable', current_database()); end $$",
    )
    first.close()

    test_eight_migrators_at_once_install_one_schema(empty_dsn)


def test_schema_with_foreign_tables_is_left_alone(session: Session) -> None:
    execute(session, "create schema orchestrator; create table orchestrator.task (id int)")

    with pytest.raises(SchemaError, match=r"did not make; set another \[database\] schema"):
        migrate.migrate(session)

    assert "relation ready" not in {name for name, _ in rows_of_catalog(session)}


def rows_of_catalog(session: Session) -> list[tuple[str, str]]:
    with session.connection.cursor() as cursor:
        cursor.execute(CATALOG, {"schema": session.schema})
        return list(cursor.fetchall())


def test_owner_of_the_schema_needs_no_right_on_the_database(
    empty_dsn: str, session: Session
) -> None:
    execute(session, "create role guest login; create schema orchestrator authorization guest")
    try:
        guest = connect(
            empty_dsn.replace("postgres@", "guest@"),
            schema="orchestrator",
            application_name="tests",
        )

        migrate.migrate(guest)

        migrate.check(guest)
        guest.close()
    finally:
        execute(session, "drop owned by guest cascade; drop role guest")


# -- the mechanism, with migrations made up here

ADD_COLUMN = "alter table task add column colour text not null default 'red';"


def test_migrations_run_in_order_once_and_are_recorded(session: Session, directory: Path) -> None:
    migrate.migrate(session)
    add_migration(directory, named(1, "add_colour"), ADD_COLUMN)
    add_migration(
        directory,
        named(2, "rename_colour"),
        "alter table task rename colour to color;",
        min_compatible=migrate.VERSION + 2,
    )

    expected = migrate.pending(session, directory=directory)
    done = migrate.migrate(session, directory=directory)

    assert done == expected == [named(1, "add_colour"), named(2, "rename_colour")]
    assert migrate.migrate(session, directory=directory) == []
    assert versions(session)[-2:] == [
        (migrate.VERSION + 1, 1, "add_colour"),
        (migrate.VERSION + 2, migrate.VERSION + 2, "rename_colour"),
    ]
    assert "column task.color" in catalog(session)


def test_comparison_of_catalogs_sees_a_forgotten_default(session: Session, directory: Path) -> None:
    tasks = directory / "10_tasks.sql"
    table = "create table task (\n"
    text = tasks.read_text()
    assert table in text
    tasks.write_text(text.replace(table, f"{table}    colour text not null default 'red',\n"))
    add_migration(directory, named(1, "add_colour"), ADD_COLUMN)
    fresh = fresh_catalog(session, directory)

    execute(session, VERSION_1.read_text(encoding="utf-8"))
    migrate.migrate(session, directory=directory)

    assert catalog(session) == fresh
    execute(session, "alter table orchestrator.task alter colour drop default")
    assert catalog(session) != fresh


def test_fresh_installation_counts_the_migrations_as_applied(
    session: Session, directory: Path
) -> None:
    add_migration(directory, named(1, "break"), "select 1/0;")

    done = migrate.migrate(session, directory=directory)

    assert done == ["0001_base"]
    assert versions(session)[-1] == (migrate.VERSION + 1, 1, "break")


def test_failing_migration_leaves_nothing_of_itself_and_keeps_those_before(
    session: Session, directory: Path
) -> None:
    migrate.migrate(session)
    add_migration(directory, named(1, "add_colour"), ADD_COLUMN)
    add_migration(
        directory, named(2, "break"), "create table half (id int); select * from nowhere;"
    )

    with pytest.raises(SchemaError, match=r"_break.*nowhere"):
        migrate.migrate(session, directory=directory)

    found = catalog(session)
    assert "column task.colour" in found
    assert "relation half" not in found
    assert migrate.pending(session, directory=directory) == [named(2, "break")]


def test_edited_migration_is_an_error(session: Session, directory: Path) -> None:
    migrate.migrate(session)
    path = add_migration(directory, named(1, "add_colour"), ADD_COLUMN)
    migrate.migrate(session, directory=directory)

    path.write_text(path.read_text() + "-- only a word\n")

    for judge in (migrate.migrate, migrate.pending):
        with pytest.raises(SchemaError, match=f"{path.stem} was changed after it was applied"):
            judge(session, directory=directory)


@pytest.mark.parametrize(
    ("name", "script", "rule"),
    [
        (named(2, "too_far"), "-- min_compatible: 1\n", "migration is named"),
        ("9999-dash", "-- min_compatible: 1\n", "migration is named"),
        (named(1, "no_header"), "select 1;\n", "first line must be"),
    ],
)
def test_misnamed_migration_is_an_error(
    session: Session, directory: Path, name: str, script: str, rule: str
) -> None:
    (directory / "migrations" / f"{name}.sql").write_text(script)

    with pytest.raises(SchemaError, match=rule):
        migrate.migrate(session, directory=directory)


def test_newer_schema_is_fine_while_it_is_compatible(session: Session, directory: Path) -> None:
    add_migration(directory, named(1, "add_colour"), ADD_COLUMN, min_compatible=1)
    migrate.migrate(session, directory=directory)

    migrate.check(session)

    assert migrate.migrate(session) == []


def test_newer_schema_is_refused_when_it_is_not_compatible(
    session: Session, directory: Path
) -> None:
    add_migration(directory, named(1, "drop_tags"), "select 1;", min_compatible=migrate.VERSION + 1)
    migrate.migrate(session, directory=directory)

    for judge in (migrate.check, migrate.migrate):
        with pytest.raises(SchemaError, match=r"version \d+ or later.*install a newer"):
            judge(session)


def test_older_schema_is_refused_with_what_to_run(
    session: Session, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate.migrate(session)
    add_migration(directory, named(1, "add_colour"), ADD_COLUMN)
    monkeypatch.setattr(migrate, "schema_directory", lambda: directory)

    with pytest.raises(SchemaError, match=r"_add_colour\): run `orchestratorctl migrate`"):
        migrate.check(session)


def test_migrators_at_once_apply_each_migration_once(
    empty_dsn: str, session: Session, directory: Path
) -> None:
    migrate.migrate(session)
    # Twice would fail.
    add_migration(directory, named(1, "add_colour"), "select pg_sleep(0.2); " + ADD_COLUMN)

    def run(_: int) -> list[str]:
        own = connect(empty_dsn, schema="orchestrator", application_name="tests")
        try:
            return migrate.migrate(own, directory=directory)
        finally:
            own.close()

    with ThreadPoolExecutor(6) as pool:
        done = list(pool.map(run, range(6)))

    assert sorted(done) == [[]] * 5 + [[named(1, "add_colour")]]


def test_migration_finds_the_functions_under_the_search_path_of_the_schema(
    session: Session, directory: Path
) -> None:
    session.schema = "other"
    migrate.migrate(session)
    add_migration(
        directory,
        named(1, "add_function"),
        "create function colour() returns bigint language sql stable set search_path from current "
        "as $$ select count(*) from task $$;",
    )

    migrate.migrate(session, directory=directory)

    with psycopg2.connect(session.connection.dsn) as stranger, stranger.cursor() as cursor:
        cursor.execute("select other.colour()")
        assert cursor.fetchone() == (0,)
