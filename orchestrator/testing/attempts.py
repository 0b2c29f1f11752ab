"""One attempt without a database: a context for a handler, or the whole way of a worker.

`context` makes the first argument of a handler that is called as a function. `run` takes a payload
the way that a worker takes it (encoded, decoded, through middleware and lifespans) and returns
what the runner decided. What follows in a database is `draining`'s.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn, TypeVar

from orchestrator import logs
from orchestrator.context import Context, Said
from orchestrator.enqueueing import encode_payload, normalise
from orchestrator.errors import ConfigError
from orchestrator.mux import Mux
from orchestrator.options import Policy
from orchestrator.outcome import Budget, Ending, Outcome
from orchestrator.payload import decode
from orchestrator.runner import Runner
from orchestrator.task import Claim, State, Task
from orchestrator.tasktype import TaskType
from orchestrator.testing.enqueued import as_tasks

S = TypeVar("S")
T = TypeVar("T")

Told = bool | Callable[[], bool]

_SAVEPOINT = "orchestrator_attempt"
_WHY = "is the runner's to call, after the handler has returned: remove the call"


class RecordingContext(Context[S]):
    """A context without a worker; what the handler did with it can be looked at.

    `waits` are the seconds of each `wait` and `sleep`, none of which was slept; `said` is what it
    told by `progress`.
    """

    waits: list[float]
    said: list[Said]

    @property
    def enqueued(self) -> list[Task[Any]]:
        """The tasks that the handler asked for, in order."""
        return as_tasks(self._enqueues)


def context(
    *,
    task_id: int = 1,
    type: TaskType[Any, Any] | str = "test",
    attempt: int = 1,
    max_attempts: int = 10,
    queue: str = "default",
    headers: Mapping[str, Any] | None = None,
    deadline: datetime | None = None,
    state: Any = None,
    log: logs.Logger | None = None,
    stopping: Told = False,
    cancelled: Told = False,
    connection: Any = None,
) -> RecordingContext[Any]:
    """Make a context, to call a handler as the function that it is.

    `stopping` and `cancelled` are what the handler sees, or functions that are asked each time.
    `connection` is a psycopg2 connection for `ctx.connection()`; to commit what the handler writes,
    or to roll it back, is left to the test. `ctx.wait` and `ctx.sleep` take no time.
    """
    waits: list[float] = []
    said: list[Said] = []
    made: RecordingContext[Any] = RecordingContext(
        task_id=task_id,
        type=type.name if isinstance(type, TaskType) else type,
        attempt=attempt,
        max_attempts=max_attempts,
        queue=queue,
        headers=headers,
        deadline=deadline,
        state=state,
        log=log,
        is_stopping=_asked(stopping),
        is_cancelled=_asked(cancelled),
        wake=_recording(waits),
        nap=_recording_nap(waits),
        keep_progress=said.append,
        connect=None if connection is None else LentConnection(connection).begin,
    )
    made.waits, made.said = waits, said
    return made


class AttemptOutcome(Outcome, frozen=True, kw_only=True):
    """How one attempt of a test ended: the runner's decision, and what can be asked about it.

    `failures` are those charged before. `delay` is in seconds, drawn as ever. `said` is what the
    handler told by `ctx.progress`.
    """

    task_id: int
    type: str
    attempt: int
    said: list[Said]
    failures: int = 0
    result_type: Any = None

    @property
    def value(self) -> Any:
        """What the handler returned, as it comes back: of the TaskType's result type, else JSON.

        Raises:
            AssertionError: it did not succeed; the message holds its traceback.
        """
        if self.ending is not Ending.SUCCEEDED or self.result is None:
            raise AssertionError(f"{self} has no result{self._said()}")
        return decode(self.result, Any if self.result_type is None else self.result_type)

    @property
    def state(self) -> State:
        """Where the task goes: to an end, to `scheduled` for `delay` seconds, or to `ready`."""
        match self.ending:
            case Ending.SUCCEEDED:
                return State.SUCCEEDED
            case Ending.CANCELLED:
                return State.CANCELLED
        is_charged = self.budget is not Budget.NOTHING
        if self.dead_reason is not None or (is_charged and self.is_last(self.failures)):
            return State.DEAD
        return State.SCHEDULED if self.delay > 0 else State.READY

    @property
    def enqueued(self) -> list[Task[Any]]:
        """The tasks that are enqueued with the success, in order; none without one."""
        return as_tasks(self.enqueues)

    def __str__(self) -> str:
        return f"attempt {self.attempt} of task {self.task_id} ({self.type}), {self.ending},"

    def _said(self) -> str:
        if self.failure is None:
            return ""
        return f":\n{self.failure.traceback or self.failure}"


def run(
    mux: Mux,
    type: TaskType[Any, Any] | str,
    payload: Any = None,
    *,
    task_id: int = 1,
    attempt: int = 1,
    failures: int | None = None,
    crashes: int = 0,
    queue: str | None = None,
    priority: int | None = None,
    headers: Mapping[str, Any] | None = None,
    max_attempts: int | None = None,
    timeout: str | float | timedelta | None = None,
    state: Any = None,
    stopping: Told = False,
    cancelled: Told = False,
    connection: Any = None,
    defaults: Policy | None = None,
) -> AttemptOutcome:
    """Run one attempt as a worker does, without a database, and return how it ended.

    The payload goes through JSON, the mux finds the handler, lifespans and middleware run, `def`
    and `async def` alike; then the runner decides what follows. `attempt` is the number of this
    run, and unless `failures` says otherwise all before it have failed. `queue` to `timeout` are
    what the enqueuer could have said, `defaults` what `[defaults]` would. `state`, where given, is
    `ctx.state` and no lifespan is run. `stopping` is what the handler sees. `cancelled` is asked
    before it begins, by `ctx.cancelled`, and in `ctx.wait` and `ctx.sleep`, which raise `Cancelled`
    where it is true, as in a worker any line may. `connection` is a psycopg2 connection for
    `ctx.connection()`: what a handler wrote that did not succeed is rolled back to where it began,
    and the rest is left to the test. `ctx.wait` and `ctx.sleep` take no time.

    Raises:
        ConfigError: the mux has faults, or serves no such type.
        PayloadError: a payload or an option that could not have been enqueued.
        BaseException: what a lifespan raised. What a handler raises is in the outcome.
    """
    options = normalise(
        type,
        queue=queue,
        priority=priority,
        headers=headers,
        max_attempts=max_attempts,
        timeout=timeout,
    )
    body = encode_payload(type, payload)
    if mux.resolve(options.type) is None:
        raise ConfigError(
            f"run(mux, {options.type!r}): the mux serves no such type, only "
            f"{', '.join(mux.patterns()) or 'nothing'}: register a handler on it, or mount its mux"
        )
    claimed = Claim(
        task_id=task_id,
        token=1,
        attempt=attempt,
        type=options.type,
        queue=options.queue,
        priority=options.priority,
        payload=body.decode(),
        headers=options.headers.decode(),
        max_attempts=options.max_attempts,
        timeout=options.timeout,
        failures=max(0, attempt - 1 - crashes) if failures is None else failures,
        crashes=crashes,
        losses=0,
        is_alone=crashes > 0,
        created_at=datetime.now(UTC),
    )

    lent = None if connection is None else LentConnection(connection)
    said: list[Said] = []

    def attempt_it() -> Outcome:
        with runner(
            mux,
            state=state,
            stopping=stopping,
            cancelled=cancelled,
            defaults=defaults,
            progress=lambda _, one: said.append(one),
            connect=None if lent is None else lambda _: lent.begin(),
            interrupted=claimed,
        ) as made:
            return made.run(claimed)

    outcome = away_from_loops(attempt_it)
    if lent is not None and outcome.ending is not Ending.SUCCEEDED:
        lent.rollback()
    return reported(outcome, claimed, type=type, said=said)


def runner(
    mux: Mux,
    *,
    state: Any = None,
    stopping: Told = False,
    cancelled: Told = False,
    defaults: Policy | None = None,
    progress: Callable[[Claim, Said], None],
    connect: Callable[[Claim], Any] | None,
    interrupted: Claim | None = None,
) -> Runner:
    """Make a runner as a worker has it, whose handlers do not sleep in `ctx.wait`.

    There, `interrupted` meets its `Cancelled`, once `cancelled` is true.
    """
    is_cancelled = _asked(cancelled)

    def wake(seconds: float) -> bool:
        if interrupted is not None:
            made.stop(interrupted)
        return False

    async def nap(seconds: float) -> bool:
        wake(seconds)
        await asyncio.sleep(0)
        return False

    made = Runner(
        mux,
        defaults=Policy() if defaults is None else defaults,
        state=state,
        stopping=_asked(stopping),
        wake=wake,
        nap=nap,
        cancelled=lambda _: is_cancelled(),
        progress=progress,
        connect=connect,
    )
    return made


def reported(
    outcome: Outcome,
    claimed: Claim,
    *,
    type: TaskType[Any, Any] | str | None = None,
    said: list[Said],
) -> AttemptOutcome:
    """Return an outcome together with what was claimed for it.

    Raises:
        KeyboardInterrupt: somebody pressed Ctrl-C while the handler ran, which ends a test run
            and not an attempt.
    """
    if outcome.failure is not None and outcome.failure.type == "KeyboardInterrupt":
        raise KeyboardInterrupt
    fields = {name: getattr(outcome, name) for name in outcome.__struct_fields__}
    return AttemptOutcome(
        **fields,
        task_id=claimed.task_id,
        type=claimed.type,
        attempt=claimed.attempt,
        failures=claimed.failures,
        result_type=type.result if isinstance(type, TaskType) else None,
        said=said,
    )


class LentConnection:
    """A test's connection as `ctx.connection()` gives it: its transaction is not the handler's.

    Everything else is that of the connection itself. No driver is named, so that handlers without
    a database are tested without one.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._is_begun = False

    def begin(self) -> LentConnection:
        """Remember where the attempt begins to write."""
        if not self._is_begun:
            self._run(f"savepoint {_SAVEPOINT}")
            self._is_begun = True
        return self

    def rollback(self) -> None:
        """Undo what this attempt has written so far; what the test wrote before stays."""
        if self._is_begun:
            self._run(f"rollback to savepoint {_SAVEPOINT}")

    def commit(self) -> NoReturn:
        raise RuntimeError(f"ctx.connection().commit() {_WHY} (or the `with connection:` round it)")

    def close(self) -> NoReturn:
        raise RuntimeError(f"ctx.connection().close() {_WHY}")

    def __enter__(self) -> LentConnection:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.commit()
        self.rollback()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def _run(self, statement: str) -> None:
        if getattr(self._connection, "autocommit", False):
            raise RuntimeError(
                "connection=...: is in autocommit mode, in which nothing can be rolled back, and a "
                "worker rolls back what does not succeed: set autocommit = False"
            )
        with self._connection.cursor() as cursor:
            cursor.execute(statement)


def away_from_loops(function: Callable[[], T]) -> T:
    """Call a function where no event loop runs: in a thread, when called by an async test.

    A worker has a loop of its own, and there can be one per thread.
    """
    if not _is_on_a_loop():
        return function()
    ended: list[T] = []
    raised: list[BaseException] = []

    def call() -> None:
        try:
            ended.append(function())
        except BaseException as error:  # noqa: BLE001 - raised again by the caller's thread
            raised.append(error)

    thread = threading.Thread(target=call, name="orchestrator.testing")
    thread.start()
    thread.join()
    if raised:
        raise raised[0]
    return ended[0]


def _is_on_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _asked(told: Told) -> Callable[[], bool]:
    return told if callable(told) else lambda: told


def _recording(waits: list[float]) -> Callable[[float], bool]:
    def wake(seconds: float) -> bool:
        waits.append(seconds)
        return False

    return wake


def _recording_nap(waits: list[float]) -> Callable[[float], Awaitable[bool]]:
    async def nap(seconds: float) -> bool:
        waits.append(seconds)
        await asyncio.sleep(0)
        return False

    return nap
