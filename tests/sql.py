"""What tests ask the database themselves, past the product's own functions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from orchestrator.db.connection import Session, connect

SCHEMA = "orchestrator"


@contextmanager
def opened(dsn: str) -> Iterator[Session]:
    """Give a session of the test's own for the length of a block."""
    session = connect(dsn, schema=SCHEMA, application_name="tests")
    try:
        yield session
    finally:
        session.close()


def rows(session: Session, statement: str, **parameters: Any) -> list[tuple[Any, ...]]:
    """Run a statement with `orchestrator` as the search path; return its rows as plain tuples."""
    with session.connection.cursor() as cursor:
        cursor.execute(f"set search_path to {SCHEMA}")
        cursor.execute(statement, parameters)
        return list(cursor.fetchall()) if cursor.description else []


def value(session: Session, statement: str, **parameters: Any) -> Any:
    """Like `rows`: the first column of the first row, None where there is none."""
    found = rows(session, statement, **parameters)
    return found[0][0] if found else None


def count(session: Session, table: str) -> int:
    return int(rows(session, f"select count(*) from {table}")[0][0])


def charged(session: Session, task_id: int) -> tuple[int, int, int]:
    """Return what a live task was charged: failures, crashes, losses."""
    found = rows(
        session, "select failures, crashes, losses from tasks where id = %(id)s", id=task_id
    )
    failures, crashes, losses = found[0]
    return int(failures), int(crashes), int(losses)


def backends(session: Session) -> list[str]:
    """Name the connections of our processes to this database, sorted."""
    found = rows(
        session,
        "select application_name from pg_stat_activity "
        "where datname = current_database() and application_name like 'orchestrator %%' "
        "order by 1",
    )
    return [str(name) for (name,) in found]
