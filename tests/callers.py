"""Programs that enqueue in their own transaction: one way for each library that has connections."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from typing import Any

import django
import psycopg
import psycopg2
import sqlalchemy
from django.conf import settings
from django.db import connection as django_connection
from django.db import connections, transaction
from sqlalchemy.ext.asyncio import (
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import NullPool

# Gives a connection with an open transaction, and commits it or rolls it back.
Transactions = Callable[[], AbstractContextManager[Any]]


class RollBack(Exception):
    """Raised inside a transaction, to end it as a program's mistake would."""


def url_for(dsn: str, driver: str) -> str:
    return dsn.replace("postgresql://", f"postgresql+{driver}://")


@contextmanager
def by_psycopg2(dsn: str) -> Iterator[Transactions]:
    connection = psycopg2.connect(dsn)

    @contextmanager
    def transactions() -> Iterator[Any]:
        with connection:
            yield connection

    yield transactions
    connection.close()


@contextmanager
def by_psycopg(dsn: str) -> Iterator[Transactions]:
    with psycopg.connect(dsn) as connection:

        @contextmanager
        def transactions() -> Iterator[Any]:
            try:
                yield connection
            except BaseException:
                connection.rollback()
                raise
            connection.commit()

        yield transactions


@contextmanager
def engine_of(dsn: str, driver: str, **options: Any) -> Iterator[sqlalchemy.Engine]:
    engine = sqlalchemy.create_engine(url_for(dsn, driver), **options)
    yield engine
    engine.dispose()


def by_session(driver: str) -> Callable[[str], AbstractContextManager[Transactions]]:
    @contextmanager
    def opened(dsn: str) -> Iterator[Transactions]:
        with engine_of(dsn, driver) as engine, Session(engine) as session:

            @contextmanager
            def transactions() -> Iterator[Any]:
                with session.begin():
                    yield session

            yield transactions

    return opened


def by_scoped_session(driver: str) -> Callable[[str], AbstractContextManager[Transactions]]:
    @contextmanager
    def opened(dsn: str) -> Iterator[Transactions]:
        with engine_of(dsn, driver) as engine:
            session = scoped_session(sessionmaker(engine))

            @contextmanager
            def transactions() -> Iterator[Any]:
                with session.begin():
                    yield session

            yield transactions
            session.remove()

    return opened


def by_connection(driver: str) -> Callable[[str], AbstractContextManager[Transactions]]:
    @contextmanager
    def opened(dsn: str) -> Iterator[Transactions]:
        with engine_of(dsn, driver) as engine, engine.connect() as connection:

            @contextmanager
            def transactions() -> Iterator[Any]:
                try:
                    yield connection
                except BaseException:
                    connection.rollback()
                    raise
                connection.commit()

            yield transactions

    return opened


def set_up_django(dsn: str) -> None:
    """Configure Django, once per process: the databases of all tests have the same name."""
    if settings.configured:
        return
    parts = psycopg2.extensions.parse_dsn(dsn)
    settings.configure(
        USE_TZ=False,
        TIME_ZONE="Asia/Kathmandu",
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.postgresql",
                "NAME": parts["dbname"],
                "USER": parts["user"],
                "HOST": parts["host"],
                "PORT": parts.get("port", ""),
            }
        },
    )
    django.setup()


@contextmanager
def by_django(dsn: str) -> Iterator[Transactions]:
    set_up_django(dsn)

    @contextmanager
    def transactions() -> Iterator[Any]:
        with transaction.atomic():
            yield django_connection

    yield transactions
    connections.close_all()


SQLALCHEMY = {
    f"sqlalchemy {kind}, {driver}": way(driver)
    for driver in ("psycopg2", "psycopg")
    for kind, way in (
        ("session", by_session),
        ("scoped session", by_scoped_session),
        ("connection", by_connection),
    )
}
WAYS: dict[str, Callable[[str], AbstractContextManager[Transactions]]] = {
    "psycopg2": by_psycopg2,
    "psycopg": by_psycopg,
    **SQLALCHEMY,
    "django": by_django,
}
# Those that tell of their commits.
RINGING = {**SQLALCHEMY, "django": by_django}


# -- awaited


@asynccontextmanager
async def awaited_psycopg(dsn: str) -> AsyncIterator[Any]:
    async with await psycopg.AsyncConnection.connect(dsn) as connection:

        @asynccontextmanager
        async def transactions() -> AsyncIterator[Any]:
            try:
                yield connection
            except BaseException:
                await connection.rollback()
                raise
            await connection.commit()

        yield transactions


@asynccontextmanager
async def awaited_session(dsn: str) -> AsyncIterator[Any]:
    engine = create_async_engine(url_for(dsn, "psycopg"), poolclass=NullPool)
    async with AsyncSession(engine) as session:

        @asynccontextmanager
        async def transactions() -> AsyncIterator[Any]:
            async with session.begin():
                yield session

        yield transactions
    await engine.dispose()


@asynccontextmanager
async def awaited_scoped_session(dsn: str) -> AsyncIterator[Any]:
    engine = create_async_engine(url_for(dsn, "psycopg"), poolclass=NullPool)
    session = async_scoped_session(async_sessionmaker(engine), scopefunc=lambda: 1)

    @asynccontextmanager
    async def transactions() -> AsyncIterator[Any]:
        async with session.begin():
            yield session

    yield transactions
    await session.remove()
    await engine.dispose()


@asynccontextmanager
async def awaited_connection(dsn: str) -> AsyncIterator[Any]:
    engine = create_async_engine(url_for(dsn, "psycopg"))
    async with engine.connect() as connection:

        @asynccontextmanager
        async def transactions() -> AsyncIterator[Any]:
            try:
                yield connection
            except BaseException:
                await connection.rollback()
                raise
            await connection.commit()

        yield transactions
    await engine.dispose()


AWAITED_SQLALCHEMY: dict[str, Any] = {
    "sqlalchemy session": awaited_session,
    "sqlalchemy scoped session": awaited_scoped_session,
    "sqlalchemy connection": awaited_connection,
}
AWAITED: dict[str, Any] = {"psycopg": awaited_psycopg, **AWAITED_SQLALCHEMY}


# -- in autocommit mode, without a transaction


@contextmanager
def autocommit_psycopg2(dsn: str) -> Iterator[Any]:
    connection = psycopg2.connect(dsn)
    connection.autocommit = True
    yield connection
    connection.close()


@contextmanager
def autocommit_psycopg(dsn: str) -> Iterator[Any]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield connection


def autocommit_connection(driver: str) -> Callable[[str], AbstractContextManager[Any]]:
    @contextmanager
    def opened(dsn: str) -> Iterator[Any]:
        with engine_of(dsn, driver, isolation_level="AUTOCOMMIT") as engine:
            with engine.connect() as connection:
                yield connection

    return opened


@contextmanager
def autocommit_django(dsn: str) -> Iterator[Any]:
    set_up_django(dsn)
    with nullcontext():
        yield django_connection
    connections.close_all()


AUTOCOMMIT: dict[str, Callable[[str], AbstractContextManager[Any]]] = {
    "psycopg2": autocommit_psycopg2,
    "psycopg": autocommit_psycopg,
    "sqlalchemy, psycopg2": autocommit_connection("psycopg2"),
    "sqlalchemy, psycopg": autocommit_connection("psycopg"),
    "django": autocommit_django,
}
