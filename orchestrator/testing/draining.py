"""The worker's loop on a real database, in the process of a test: until nothing is ready.

Tasks are claimed and ended by the statements that a node uses, with the fence and in the same
transactions, so what a test reads afterwards is what it would read after a node. What is left out
is what makes it a node: processes, hence crashes and time limits, and the leader's other duties.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self

import psycopg2

from orchestrator import __version__
from orchestrator.client import Client, required
from orchestrator.context import Said
from orchestrator.db.connection import Session, connect
from orchestrator.errors import DatabaseUnavailable, PayloadError
from orchestrator.mux import Mux
from orchestrator.options import Policy
from orchestrator.outcome import Ending, Outcome
from orchestrator.runner import Runner, refused, undone
from orchestrator.store import nodes
from orchestrator.store.claim import claim
from orchestrator.store.effects import Effects, EffectsConnection
from orchestrator.store.expedite import expedite
from orchestrator.store.poll import unhold
from orchestrator.store.progress import Report, report_progress
from orchestrator.store.promote import promote
from orchestrator.store.record import record
from orchestrator.store.release import release
from orchestrator.task import Claim
from orchestrator.testing.attempts import AttemptOutcome, away_from_loops, reported, runner

if TYPE_CHECKING:
    # It needs a driver that users of `Client` may not have.
    from orchestrator.async_client import AsyncClient

_SLOT = "drain-0"
_SLICE = 1000


def drain(
    mux: Mux,
    client: Client | AsyncClient,
    *,
    queues: Sequence[str] = ("*",),
    scheduled: bool = False,
    limit: int = 1000,
    state: Any = None,
    defaults: Policy | None = None,
) -> list[AttemptOutcome]:
    """Run the ready tasks of the client's database, one after the other, until none is left.

    Returns the attempts in the order in which they ran, also those of tasks that handlers enqueued
    meanwhile. With `scheduled`, tasks that wait for their time or for a retry run as well, in the
    order of their times, as if these had come. Types that the mux does not serve are held, as by a
    node. `state`, where given, is `ctx.state` and no lifespan is run; `defaults` is `[defaults]`.
    A node may run beside: each task is run by one of the two.

    Raises:
        AssertionError: after `limit` attempts there is still more to run, for instance of a task
            that enqueues itself; what was run stays as it is.
        DatabaseUnavailable, SchemaError: as for the client.
        BaseException: what a lifespan raised. What a handler raises is in its outcome.
    """

    if not isinstance(mux, Mux) or not hasattr(client, "enqueue_many"):
        raise TypeError(f"drain({mux!r}, {client!r}): must be a Mux, then a Client or AsyncClient")
    if isinstance(queues, str):
        raise TypeError(f"drain(queues={queues!r}): must be a list of names, such as [{queues!r}]")

    def drain_it() -> list[AttemptOutcome]:
        with _opened(client) as session, _Database(client, session) as database:
            made = runner(
                mux,
                state=state,
                defaults=defaults,
                progress=database.keep_progress,
                connect=database.effects.connection,
            )
            with made, _registered(session, mux.patterns(), queues) as node:
                return _Loop(database, node, made, mux.patterns(), queues).run_all(
                    limit=limit, is_expediting=scheduled
                )

    return away_from_loops(drain_it)


class _Database:
    """What the handlers of one drain write to."""

    def __init__(self, client: Client | AsyncClient, session: Session) -> None:
        self.session = session
        self.effects = Effects(lambda: _open(client, kind=EffectsConnection))
        self.said: list[Said] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.effects.close()

    def keep_progress(self, claimed: Claim, said: Said) -> None:
        self.said.append(said)
        report_progress(self.session, [Report(claimed.task_id, claimed.token, *said)])

    def record(self, claimed: Claim, outcome: Outcome, policy: Policy) -> Outcome:
        """Record an end, with the handler's effects if it succeeded; return what was recorded."""
        try:
            if self.effects.is_begun and outcome.ending is Ending.SUCCEEDED:
                self.effects.commit(claimed, outcome)
                return outcome
            self.effects.roll_back()
            record(self.session, claimed, outcome)
            return outcome
        except PayloadError as error:
            outcome = refused(claimed, outcome, policy, error)
        except (RuntimeError, psycopg2.Error) as error:
            # The effects could not be committed.
            outcome = undone(claimed, outcome, policy, error)
        record(self.session, claimed, outcome)
        return outcome


class _Loop:
    """What a worker does, for one node of its own."""

    def __init__(
        self,
        database: _Database,
        node: int,
        made: Runner,
        patterns: Sequence[str],
        queues: Sequence[str],
    ) -> None:
        self._database = database
        self._session = database.session
        self._node = node
        self._runner = made
        self._patterns = patterns
        self._queues = queues

    def run_all(self, *, limit: int, is_expediting: bool) -> list[AttemptOutcome]:
        """Run until there is nothing to claim."""
        outcomes: list[AttemptOutcome] = []
        while claimed := self._next(is_expediting=is_expediting):
            if len(outcomes) >= limit:
                self._give_back(claimed)
                raise AssertionError(
                    f"drain(limit={limit}): there is still more to run, next task "
                    f"{claimed.task_id} ({claimed.type}): raise the limit, or does a task enqueue "
                    "or snooze itself for ever?"
                )
            outcomes.append(self._run(claimed))
        return outcomes

    def _next(self, *, is_expediting: bool) -> Claim | None:
        """Claim the next task; None where there is none."""
        # What a steward and a leader would have done by now.
        nodes.beat(self._session, node=self._node, workers="[]")
        unhold(self._session, patterns=self._patterns, queues=self._queues, limit=_SLICE)
        promote(self._session, limit=_SLICE)
        claimed = self._claim()
        while claimed is None and is_expediting:
            if not expedite(self._session, patterns=self._patterns, queues=self._queues):
                return None
            promote(self._session, limit=_SLICE)
            claimed = self._claim()
        return claimed

    def _claim(self) -> Claim | None:
        claims = claim(
            self._session,
            node=self._node,
            slot=_SLOT,
            incarnation=1,
            pid=os.getpid(),
            token=secrets.randbits(62) + 1,
            queues=self._queues,
            patterns=self._patterns,
            limit=1,
        )
        return claims[0] if claims else None

    def _run(self, claimed: Claim) -> AttemptOutcome:
        """Run one attempt and record how it ended."""
        said: list[Said] = []
        self._database.said = said
        try:
            outcome = self._runner.run(claimed)
            outcome = self._database.record(claimed, outcome, self._runner.policy(claimed))
        except BaseException:
            self._give_back(claimed)
            raise
        return reported(outcome, claimed, said=said)

    def _give_back(self, claimed: Claim) -> None:
        """Release a task that is not run: nobody would rescue it from a test."""
        with contextlib.suppress(DatabaseUnavailable):
            release(self._session, [(claimed.task_id, claimed.token)])


def _open(client: Client | AsyncClient, *, kind: type[Any] | None = None) -> Session:
    # The place of its database is a client's own affair, and this is a part of the same package.
    database = client._database
    return connect(
        required(database._url),
        schema=client.schema,
        application_name="orchestrator drain",
        connect_timeout=database._connect_timeout,
        kind=kind,
    )


@contextlib.contextmanager
def _opened(client: Client | AsyncClient) -> Iterator[Session]:
    session = _open(client)
    try:
        yield session
    finally:
        session.close()


@contextlib.contextmanager
def _registered(session: Session, patterns: Sequence[str], queues: Sequence[str]) -> Iterator[int]:
    """Be a node for the length of a block: only a node that is alive may claim."""
    node = nodes.register(
        session,
        name="drain",
        host=socket.gethostname(),
        pid=os.getpid(),
        run=secrets.token_hex(8),
        version=__version__,
        lock_path="",
        # A node that wants to be alone is not asked: it is there already, or it waits for us.
        distributed=True,
        handlers=patterns,
        queues=queues,
    )
    try:
        nodes.lock(session, purpose="node", number=node)
        yield node
    finally:
        # Of a server that is gone, the test has heard already.
        with contextlib.suppress(DatabaseUnavailable):
            nodes.deregister(session, node=node)
