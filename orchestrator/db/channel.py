"""The shape in which both clients reach the database, and the plain `Session` in that shape.

What a client does is written once, in coroutines over a `Channel` (`verbs`). Those of an
`AsyncSession` are awaited. Those of `Blocking` wait inside and never suspend, so a coroutine over
them runs from begin to end when it is started: `at_once` does that, without any event loop.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from orchestrator.db.connection import Session
from orchestrator.db.joining import Bell, Joined
from orchestrator.db.pool import Pool

A = ParamSpec("A")
T = TypeVar("T")


class Channel(Protocol):
    """A session that runs the functions of the store."""

    schema: str

    async def call(
        self, function: Callable[Concatenate[Session, A], T], *args: A.args, **kwargs: A.kwargs
    ) -> T:
        """Run `function(session, ...)` and return its answer."""

    def transaction(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Make the calls inside one transaction; on a caller's connection, join one."""


class OwnChannel(Channel, Protocol):
    """A channel of a pool's."""

    def close(self) -> None:
        """Close the connection; never raises."""


class JoinedChannel(Channel, Protocol):
    """A channel on a connection of the caller's."""

    @property
    def is_at_rest(self) -> bool:
        """True where no transaction is open, so that what was written is committed."""

    def at_commit(self, bell: Bell) -> None:
        """Ring once the open transaction is committed, where the library lets us hear of it."""


C = TypeVar("C", bound=OwnChannel)


class Lender(Protocol[C]):
    """A pool of channels."""

    async def take(self) -> C:
        """Lend a channel; wait while all are lent."""

    def give_back(self, channel: C, /) -> None:
        """Take a channel back."""


class Blocking:
    """A `Session`, the caller's or our own, as a channel."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.schema = session.schema

    async def call(
        self, function: Callable[Concatenate[Session, A], T], *args: A.args, **kwargs: A.kwargs
    ) -> T:
        return function(self.session, *args, **kwargs)

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        with self.session.transaction():
            yield

    def close(self) -> None:
        self.session.close()


class BlockingJoined(Blocking):
    """A session on the caller's connection as a channel."""

    def __init__(self, session: Joined) -> None:
        super().__init__(session)
        self._joined = session

    @property
    def is_at_rest(self) -> bool:
        return self._joined.is_at_rest

    def at_commit(self, bell: Bell) -> None:
        self._joined.at_commit(bell)


class BlockingLender:
    """A `Pool` as a lender."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    async def take(self) -> Blocking:
        return Blocking(self.pool.take())

    def give_back(self, channel: Blocking, /) -> None:
        self.pool.give_back(channel.session)


def at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that waits for nothing outside itself; return what it returns."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        answer: T = end.value
        return answer
    coroutine.close()
    raise RuntimeError(f"{coroutine!r} awaits an event loop, and there is none")


def each_at_once(items: AsyncGenerator[T, None]) -> Iterator[T]:
    """Iterate over an asynchronous generator that waits for nothing outside itself."""
    while True:
        try:
            item = at_once(items.asend(None))
        except StopAsyncIteration:
            return
        yield item
