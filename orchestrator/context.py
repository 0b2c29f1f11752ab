"""What a handler sees of its task and of the world: the first argument of every handler.

Made by `runner` for one attempt and closed with it. What the worker knows (is a drain on, wait
until it is) comes in as functions, so that a test can make a context without a worker.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Generic, TypeVar, Unpack, overload

import msgspec

from orchestrator import logs
from orchestrator.durations import seconds as in_seconds
from orchestrator.enqueueing import Options, normalise
from orchestrator.outcome import Enqueue
from orchestrator.payload import encode
from orchestrator.tasktype import PayloadOf, TaskType

P = TypeVar("P")
S = TypeVar("S")


def _never() -> bool:
    return False


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return False


class Context(Generic[S]):
    """One attempt at one task.

    `attempt` counts from 1 and rises with every run, also with those that cost nothing.
    `deadline` is the UTC time at which the attempt is killed, None without a time limit.
    `state` is what the lifespan yielded. `log` writes with the task's fields.
    """

    def __init__(
        self,
        *,
        task_id: int,
        type: str,
        attempt: int = 1,
        max_attempts: int = 10,
        queue: str = "default",
        headers: Mapping[str, Any] | None = None,
        deadline: datetime | None = None,
        state: S = None,  # type: ignore[assignment]
        log: logs.Logger | None = None,
        is_stopping: Callable[[], bool] = _never,
        is_cancelled: Callable[[], bool] = _never,
        wake: Callable[[float], bool] | None = None,
    ) -> None:
        self.task_id = task_id
        self.type = type
        self.attempt = attempt
        self.max_attempts = max_attempts
        self.queue = queue
        self.headers: Mapping[str, Any] = headers if headers is not None else {}
        self.deadline = deadline
        self.state: S = state
        self.log = log if log is not None else logs.get("handler")
        self._is_stopping = is_stopping
        self._is_cancelled = is_cancelled
        self._wake = wake if wake is not None else _sleep
        self._enqueues: list[Enqueue] = []
        self._has_ended = False

    @property
    def stopping(self) -> bool:
        """True once a drain has begun: finish soon, or leave the rest to another attempt."""
        return self._is_stopping()

    @property
    def cancelled(self) -> bool:
        """True once somebody asked to cancel the task: clean up and raise `Cancelled`."""
        return self._is_cancelled()

    def wait(self, seconds: str | float | timedelta) -> bool:
        """Sleep, and wake early when a drain begins; True when stopping.

        It blocks: an `async def` handler awaits `asyncio.sleep` and looks at `stopping`.
        """
        if self.stopping:
            return True
        return self._wake(in_seconds(seconds)) or self.stopping

    @overload
    def enqueue(
        self,
        type: TaskType[P, Any],
        payload: PayloadOf[P],
        *,
        idempotency_key: str | None = None,
        **options: Unpack[Options],
    ) -> None: ...
    @overload
    def enqueue(
        self,
        type: str,
        payload: Any = None,
        *,
        idempotency_key: str | None = None,
        **options: Unpack[Options],
    ) -> None: ...
    def enqueue(
        self,
        type: TaskType[Any, Any] | str,
        payload: Any = None,
        *,
        queue: str | None = None,
        priority: int | None = None,
        run_at: datetime | None = None,
        delay: str | float | timedelta | None = None,
        idempotency_key: str | None = None,
        max_attempts: int | None = None,
        timeout: str | float | timedelta | None = None,
        ttl: str | float | timedelta | None = None,
        tags: Sequence[str] = (),
        headers: Mapping[str, Any] | None = None,
    ) -> None:
        """Enqueue a task if, and only if, this attempt succeeds: both are one transaction.

        The options are those of `Client.enqueue`. The task does not exist before the success
        is recorded, so there is nothing to return.

        Raises:
            PayloadError: the payload or an option breaks a rule.
            RuntimeError: the attempt has ended (a thread that outlived its handler).
        """
        if self._has_ended:
            raise RuntimeError(
                f"ctx.enqueue({type!r}): attempt {self.attempt} of task {self.task_id} has ended, "
                "so nothing would be enqueued: join your threads before the handler returns"
            )
        options = normalise(
            type,
            queue=queue,
            priority=priority,
            run_at=run_at,
            delay=delay,
            idempotency_key=idempotency_key,
            max_attempts=max_attempts,
            timeout=timeout,
            ttl=ttl,
            tags=tags,
            headers=headers,
        )
        fields = msgspec.structs.asdict(options)
        self._enqueues.append(
            Enqueue(type=fields.pop("type"), payload=encode(payload), options=fields)
        )

    def _end(self) -> list[Enqueue]:
        """Close the context and return what was enqueued on it, in order."""
        self._has_ended = True
        return self._enqueues
