"""The version of the schema: install it, bring it up to date, and judge whether we can work on it.

A fresh installation runs `schema/*.sql`, which always show the newest state. An existing one runs
the files of `schema/migrations/` that it lacks. Each step is one transaction that takes an
advisory lock, reads the version again and records what it did, so that any number of migrators
may start at once, also behind a transaction pooler. How to add a migration:
`schema/migrations/README.md`. Who may start on which version is the caller's to act upon: the
daemon refuses, `orchestratorctl migrate --check` exits with 1.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psycopg2
from psycopg2 import errorcodes

from orchestrator.db.connection import Session, translated_errors
from orchestrator.db.statements import quoted, schema_directory
from orchestrator.errors import SchemaError

# The version of the schema that this program was written for.
VERSION = 3

_FILE_NAME = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")
_HEADER = re.compile(r"-- min_compatible: (\d+)\s*\n")

_FOREIGN = ": it holds objects that this program did not make; set another [database] schema"
_REMEDIES = {
    errorcodes.DUPLICATE_TABLE: _FOREIGN,
    errorcodes.DUPLICATE_FUNCTION: _FOREIGN,
    errorcodes.DUPLICATE_OBJECT: _FOREIGN,
    errorcodes.INSUFFICIENT_PRIVILEGE: (
        ": run it as the owner, or let the owner apply `orchestratorctl migrate --print-sql`"
    ),
}


class Step(NamedTuple):
    """One version of the schema and the SQL that leads to it."""

    version: int
    min_compatible: int
    name: str
    script: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.script.encode()).hexdigest()

    def __str__(self) -> str:
        return f"{self.version:04}_{self.name}"


class Recorded(NamedTuple):
    """One row of `schema_version`."""

    version: int
    min_compatible: int
    name: str
    checksum: str


def migrate(session: Session, *, directory: Path | None = None) -> list[str]:
    """Install the schema or apply the migrations it lacks; return the names of what was done.

    `directory` holds the schema's files, by default those of the package. Safe to run at any time
    and by many at once; a failing step leaves the steps before it applied and nothing of itself.

    Raises:
        SchemaError: a migration was edited after it was applied, the schema is newer than this
            program can work with, holds foreign objects, or a step failed.
        DatabaseUnavailable: the server cannot be reached.
    """
    directory = directory or schema_directory()
    done: list[str] = []
    while names := _advance(session, directory):
        done += names
    return done


def pending(session: Session, *, directory: Path | None = None) -> list[str]:
    """Return the names of the steps that `migrate` would do, in order.

    Raises:
        SchemaError: as for `migrate`.
    """
    directory = directory or schema_directory()
    recorded = _recorded(session)
    if not recorded:
        return [str(_base(directory))]
    steps = _migrations(directory)
    _judge_newer(session.schema, recorded, newest=_newest(steps))
    _judge_checksums(session.schema, recorded, steps)
    return [str(step) for step in steps if step.version > recorded[-1].version]


def check(session: Session) -> None:
    """Return if this program can work on the schema.

    Raises:
        SchemaError: it is missing, older, edited, or too new; the message says what to run.
    """
    missing = pending(session)
    if not missing:
        return
    recorded = _recorded(session)
    if not recorded:
        raise SchemaError(
            f'schema "{session.schema}" is not installed in this database: '
            "run `orchestratorctl migrate`"
        )
    raise SchemaError(
        f'schema "{session.schema}" is version {recorded[-1].version}, this program needs version '
        f"{VERSION} ({', '.join(missing)}): run `orchestratorctl migrate`"
    )


def print_sql(schema: str, *, since: int = 0) -> str:
    """Return the SQL that leads from version `since` (0: nothing is there) to ours.

    For databases where somebody else applies changes. It records the versions like `migrate`.
    """
    directory = schema_directory()
    if since == 0:
        return _wrapped(
            schema,
            _base(directory),
            _rows_of_fresh(directory),
            preface=f"create schema if not exists {quoted(schema)};\n",
        )
    steps = [step for step in _migrations(directory) if step.version > since]
    return "\n".join(_wrapped(schema, step, [_row(step)]) for step in steps)


def _wrapped(schema: str, step: Step, rows: list[Recorded], *, preface: str = "") -> str:
    return (
        f"-- {step}\nbegin;\n{preface}set local search_path to {quoted(schema)}, pg_temp;\n\n"
        f"{step.script.rstrip()}\n\n{_record_sql(rows)}\ncommit;\n"
    )


def _record_sql(rows: list[Recorded]) -> str:
    values = ",\n".join(
        f"    ({row.version}, {row.min_compatible}, '{row.name}', '{row.checksum}')" for row in rows
    )
    return f"insert into schema_version (version, min_compatible, name, checksum) values\n{values};"


def _advance(session: Session, directory: Path) -> list[str]:
    """Do the next step, if there is one: everything of it in one transaction, under the lock."""
    steps = _migrations(directory)
    with session.transaction():
        _lock(session)
        recorded = _recorded(session)
        if not recorded:
            return [_install(session, directory)]
        _judge_newer(session.schema, recorded, newest=_newest(steps))
        _judge_checksums(session.schema, recorded, steps)
        for step in steps:
            if step.version > recorded[-1].version:
                _run(session, step, [_row(step)])
                return [str(step)]
    return []


def _install(session: Session, directory: Path) -> str:
    base = _base(directory)
    # "if not exists" asks for the right to create schemas even where it has nothing to create.
    if not _query(session, "select 1 from pg_namespace where nspname = %s", session.schema):
        _execute(session, f"create schema {quoted(session.schema)}", what="create the schema")
    _run(session, base, _rows_of_fresh(directory))
    return str(base)


def _run(session: Session, step: Step, rows: list[Recorded]) -> None:
    # Functions keep the search_path they were created under.
    _execute(session, f"set local search_path to {quoted(session.schema)}, pg_temp", what=str(step))
    _execute(session, step.script, what=str(step))
    _execute(session, _record_sql(rows), what=str(step))


def _lock(session: Session) -> None:
    # With a stricter default of the database, what another migrator commits while we wait for
    # the lock would stay unseen.
    _execute(session, "set transaction isolation level read committed", what="begin")
    # The schema's own `lock_key` may not exist yet.
    _query(
        session,
        "select pg_advisory_xact_lock(hashtextextended(%s, 0))",
        f"orchestrator:migrate:{session.schema}",
    )


def _recorded(session: Session) -> list[Recorded]:
    """Read `schema_version` in order; empty where there is none."""
    table = f"{quoted(session.schema)}.schema_version"
    found = _query(session, "select to_regclass(%s) is not null", table)
    if not found[0][0]:
        return []
    rows = _query(
        session, f"select version, min_compatible, name, checksum from {table} order by version"
    )
    if not rows:
        raise SchemaError(
            f"{table} is empty: somebody deleted its rows; restore them, or drop the schema"
        )
    return [Recorded(*row) for row in rows]


def _judge_newer(schema: str, recorded: list[Recorded], *, newest: int) -> None:
    last = recorded[-1]
    if last.min_compatible > newest:
        raise SchemaError(
            f'schema "{schema}" is version {last.version} and works with programs of schema '
            f"version {last.min_compatible} or later, this program is of version {newest}: "
            "install a newer task-orchestrator"
        )


def _judge_checksums(schema: str, recorded: list[Recorded], steps: list[Step]) -> None:
    known = {step.version: step for step in steps}
    for row in recorded:
        step = known.get(row.version)
        if step is not None and step.checksum != row.checksum:
            raise SchemaError(
                f'migration {step} was changed after it was applied to schema "{schema}" '
                f"(checksum {step.checksum[:12]}, recorded {row.checksum[:12]}): restore the "
                "released file, and put the change into a new migration"
            )


def _newest(steps: list[Step]) -> int:
    return steps[-1].version if steps else 1


def _row(step: Step) -> Recorded:
    return Recorded(step.version, step.min_compatible, step.name, step.checksum)


def _base(directory: Path) -> Step:
    """The whole schema in its newest state; recorded as version 1 with the later ones."""
    script = "\n".join(path.read_text(encoding="utf-8") for path in sorted(directory.glob("*.sql")))
    return Step(1, 1, "base", script)


def _rows_of_fresh(directory: Path) -> list[Recorded]:
    # The migrations count as applied: the files of `schema/` contain what they did.
    return [_row(step) for step in [_base(directory), *_migrations(directory)]]


def _migrations(directory: Path) -> list[Step]:
    """Read the files of `migrations/`, in order; their numbers run from 2 without a gap."""
    steps: list[Step] = []
    for path in sorted((directory / "migrations").glob("*.sql")):
        name = _FILE_NAME.fullmatch(path.name)
        script = path.read_text(encoding="utf-8")
        header = _HEADER.match(script)
        expected = len(steps) + 2
        if name is None or int(name[1]) != expected:
            raise SchemaError(
                f"{path}: the next migration is named {expected:04}_<what_it_does>.sql, with "
                "numbers from 0002 on and no gap"
            )
        if header is None:
            raise SchemaError(f"{path}: the first line must be `-- min_compatible: <version>`")
        steps.append(Step(expected, int(header[1]), name[2], script))
    return steps


def _query(session: Session, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
    with _schema_errors(session, "read the version"), session.connection.cursor() as cursor:
        cursor.execute(statement, parameters or None)
        return list(cursor.fetchall())


def _execute(session: Session, script: str, *, what: str) -> None:
    with _schema_errors(session, what), session.connection.cursor() as cursor:
        cursor.execute(script)


@contextlib.contextmanager
def _schema_errors(session: Session, what: str) -> Iterator[None]:
    try:
        with translated_errors():
            yield
    except psycopg2.Error as error:
        # What `translated_errors` leaves alone is an error of the SQL or of our rights.
        message = (error.diag.message_primary or str(error)).strip()
        remedy = _REMEDIES.get(error.pgcode or "", "")
        raise SchemaError(
            f'cannot bring schema "{session.schema}" up to date ({what}): {message}{remedy}'
        ) from error
