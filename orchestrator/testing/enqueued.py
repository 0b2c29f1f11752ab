"""What was enqueued: collected without a database, and searched with messages that help.

`capture` takes the place of a client's `enqueue` and `enqueue_many`; what they check is checked
here with the same functions. `assert_enqueued` looks through captured tasks, through what a handler
asked for by `ctx.enqueue`, or through a database.
"""

from __future__ import annotations

import builtins
import difflib
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import msgspec

from orchestrator import payload as json
from orchestrator.enqueueing import (
    EnqueueOptions,
    check_names,
    encode_payload,
    listed,
    listed_keys,
    normalise,
)
from orchestrator.errors import PayloadError
from orchestrator.outcome import Enqueue
from orchestrator.task import State, Task
from orchestrator.tasktype import TaskType

_REPLACED = ("enqueue", "enqueue_many", "ring")
# Options that only an enqueue knows; a task that was read from a database does not tell them.
_ONLY_CAPTURED = ("delay", "timeout", "ttl")
_MOST_DIFFERENCES, _MOST_TASKS, _LONGEST_PAYLOAD = 5, 20, 200


class _Anything:
    def __repr__(self) -> str:
        return "<any>"


_ANYTHING = _Anything()

# The captures that are open, the innermost last.
_open_captures: list[list[Task[Any]]] = []


@dataclass(frozen=True, kw_only=True)
class CapturedTask(Task[Any]):
    """A task that was not sent to a database.

    `payload` is what a handler would get as plain JSON. Ids count from 1 within a capture. `delay`,
    `timeout` and `ttl` are in seconds, as given to the enqueue or by the TaskType.
    """

    delay: float | None = None
    timeout: float | None = None
    ttl: float | None = None


@contextmanager
def capture(client: Any) -> Iterator[list[Task[Any]]]:
    """Collect what is enqueued through this client object for the length of a block.

    Nothing is sent, and no database is needed; `conn` is ignored. Payloads and options are checked
    as ever. An idempotency key that was used in the block gives the earlier task, `existing`. Takes
    a `Client` or an `AsyncClient`; its other methods still go to the database.
    """
    if not hasattr(type(client), "enqueue_many"):
        raise TypeError(f"capture({client!r}): must be the Client or AsyncClient that enqueues")
    captured: list[Task[Any]] = []
    collector = _Collector(captured)
    is_async = inspect.iscoroutinefunction(type(client).enqueue)
    replacements = collector.awaited() if is_async else collector.plain()
    before = {name: vars(client)[name] for name in _REPLACED if name in vars(client)}
    for name, replacement in zip(_REPLACED, replacements, strict=True):
        setattr(client, name, replacement)
    _open_captures.append(captured)
    try:
        yield captured
    finally:
        _open_captures[:] = [other for other in _open_captures if other is not captured]
        for name in _REPLACED:
            delattr(client, name)
        for name, method in before.items():
            setattr(client, name, method)


class _Collector:
    """Stands in for the enqueueing half of a client."""

    def __init__(self, captured: list[Task[Any]]) -> None:
        self._captured = captured

    def plain(self) -> tuple[Callable[..., Any], ...]:
        return (self.enqueue, self.enqueue_many, lambda: False)

    def awaited(self) -> tuple[Callable[..., Any], ...]:
        async def enqueue(*args: Any, **options: Any) -> Task[Any]:
            return self.enqueue(*args, **options)

        async def enqueue_many(*args: Any, **options: Any) -> list[Task[Any]]:
            return self.enqueue_many(*args, **options)

        async def ring() -> bool:
            return False

        return (enqueue, enqueue_many, ring)

    def enqueue(
        self,
        type: TaskType[Any, Any] | str,
        payload: Any = None,
        *,
        conn: Any = None,
        **options: Any,
    ) -> Task[Any]:
        check_names("enqueue", options, also=["idempotency_key"])
        normalised = normalise(type, **options)
        body = _body(type, payload, "payload")
        return self._add(type, normalised, body, normalised.idempotency_key)

    def enqueue_many(
        self,
        type: TaskType[Any, Any] | str,
        payloads: Iterable[Any],
        *,
        conn: Any = None,
        on_progress: Callable[[int, int], None] | None = None,
        idempotency_keys: Iterable[str | None] | None = None,
        **options: Any,
    ) -> list[Task[Any]]:
        check_names("enqueue_many", options)
        normalised = normalise(type, **options)
        given = listed(payloads)
        bodies = [_body(type, payload, f"payloads[{i}]") for i, payload in enumerate(given)]
        n = len(bodies)
        keys = [None] * n if idempotency_keys is None else listed_keys(idempotency_keys, n=n)
        tasks = [
            self._add(type, normalised, body, key) for body, key in zip(bodies, keys, strict=True)
        ]
        if on_progress is not None and tasks:
            on_progress(len(tasks), len(tasks))
        return tasks

    def _add(
        self,
        type: TaskType[Any, Any] | str,
        options: EnqueueOptions,
        body: bytes,
        key: str | None,
    ) -> Task[Any]:
        if key is not None:
            for task in self._captured:
                if (task.queue, task.idempotency_key) == (options.queue, key):
                    return replace(task, existing=True)
        task = as_captured(
            msgspec.structs.replace(options, idempotency_key=key), body, len(self._captured) + 1
        )
        if isinstance(type, TaskType):
            task = replace(task, result_type=type.result)
        self._captured.append(task)
        return task


def _body(type: TaskType[Any, Any] | str, payload: Any, root: str) -> bytes:
    body = encode_payload(type, payload, root=root)
    if len(body) > json.DEFAULT_MAX_BYTES:
        raise PayloadError(
            f"{root}: has {len(body)} bytes as JSON, more than the default limit of "
            f"{json.DEFAULT_MAX_BYTES}: pass a reference to the data"
        )
    return body


def as_captured(options: EnqueueOptions, body: bytes, number: int) -> CapturedTask:
    """Return the task that an enqueue with these options would have made."""
    now = datetime.now(UTC)
    is_due = not options.delay and (options.run_at is None or options.run_at <= now)
    return CapturedTask(
        id=number,
        type=options.type,
        queue=options.queue,
        state=State.READY if is_due else State.SCHEDULED,
        priority=options.priority,
        max_attempts=options.max_attempts,
        payload=json.decode(body),
        tags=options.tags,
        headers=json.decode(options.headers, root="headers"),
        idempotency_key=options.idempotency_key,
        created_at=now,
        run_at=options.run_at,
        delay=options.delay,
        timeout=options.timeout,
        ttl=options.ttl,
    )


def as_tasks(enqueues: Sequence[Enqueue]) -> list[Task[Any]]:
    """Return the tasks that a handler asked for by `ctx.enqueue`, in order."""
    return [
        as_captured(EnqueueOptions(type=asked.type, **asked.options), asked.payload, number)
        for number, asked in enumerate(enqueues, 1)
    ]


def assert_enqueued(
    type: TaskType[Any, Any] | str,
    *,
    payload: Any = _ANYTHING,
    within: Any = None,
    times: int | None = None,
    **options: Any,
) -> Task[Any]:
    """Assert that such a task was enqueued, and return it (the first, where there are several).

    `payload` is what the task's payload must equal, both as JSON; anything in it that JSON cannot
    write (`unittest.mock.ANY`) is compared as it is. A function is called with the payload and
    returns whether it fits. `options` are those of `enqueue`; only those that are given are
    compared. `times` asks for exactly so many. `within` is what to look through: captured tasks, a
    context, one or more outcomes, or a `Client`, whose database is read; without it, the innermost
    `capture` that is open.

    Raises:
        AssertionError: there is none; the message tells what there is instead, nearest first.
    """
    if times is not None and times < 1:
        raise ValueError(f"assert_enqueued(times={times}): for none there is assert_not_enqueued")
    wanted = _Wanted(type, payload, options)
    tasks = _tasks(within)
    found = [task for task in tasks if not wanted.differences(task)]
    if not found:
        raise AssertionError(f"{wanted} was not enqueued{wanted.told(tasks)}")
    if times is not None and len(found) != times:
        raise AssertionError(
            f"{wanted} was enqueued {len(found)} times, expected {times}{wanted.told(tasks)}"
        )
    return found[0]


def assert_not_enqueued(
    type: TaskType[Any, Any] | str,
    *,
    payload: Any = _ANYTHING,
    within: Any = None,
    **options: Any,
) -> None:
    """Assert that no such task was enqueued; the arguments are those of `assert_enqueued`.

    Raises:
        AssertionError: there is one, and the message shows it.
    """
    wanted = _Wanted(type, payload, options)
    found = [task for task in _tasks(within) if not wanted.differences(task)]
    if found:
        raise AssertionError(f"{wanted} was enqueued all the same:\n{_listed(found)}")


def _tasks(within: Any) -> list[Task[Any]]:
    if within is None:
        if not _open_captures:
            raise RuntimeError(
                "there is no open capture to look through: call it inside `with capture(client):`, "
                "or say within=... (captured tasks, a context, an outcome, a Client)"
            )
        return list(_open_captures[-1])
    if isinstance(within, Task):
        return [within]
    if hasattr(within, "enqueued"):
        return list(within.enqueued)
    if hasattr(within, "tasks"):
        found = within.tasks()
        if hasattr(found, "__aiter__"):
            raise TypeError(
                "within=...: the database of an AsyncClient cannot be read here, since that is "
                "awaited: give a Client of the same database"
            )
        # The oldest first, as in a capture.
        return list(found)[::-1]
    if isinstance(within, str | bytes) or not isinstance(within, Iterable):
        raise TypeError(
            f"within = {within!r}: must be captured tasks, a context, an outcome, a list of them, "
            "or a Client"
        )
    return list(itertools.chain.from_iterable(_tasks(one) for one in within))


class _Wanted:
    """What is looked for, and how a task differs from it."""

    def __init__(
        self, type: TaskType[Any, Any] | str, payload: Any, options: Mapping[str, Any]
    ) -> None:
        check_names("assert_enqueued", options, also=["idempotency_key"])
        if isinstance(payload, builtins.type):
            raise TypeError(
                f"payload = {payload!r}: is a class, and would be called with the payload: give "
                "an instance of it, a dict or a function"
            )
        normalised = normalise(type, **options)
        self.type = normalised.type
        self.payload = payload
        self.is_predicate = callable(payload)
        self.expected = payload if self.is_predicate else _plain(payload)
        self.options = {name: getattr(normalised, name) for name in options}
        if "headers" in self.options:
            self.options["headers"] = json.decode(normalised.headers, root="headers")

    def differences(self, task: Task[Any]) -> list[str]:
        """List how a task differs, each with what is there and what was expected."""
        if task.type != self.type:
            return [f"type is {task.type!r}"]
        found: list[str] = []
        if self.is_predicate:
            if not self.payload(task.payload):
                found.append(f"{_name(self.payload)} is not true of its payload")
        elif self.expected is not _ANYTHING:
            # A payload that the enqueuer still holds as an object.
            found.extend(_differences(_plain(task.payload), self.expected, "payload"))
        for name, expected in self.options.items():
            actual = _option(task, name)
            if actual != expected:
                found.append(f"{name} is {actual!r}, expected {expected!r}")
        return found

    def told(self, tasks: Sequence[Task[Any]]) -> str:
        """Tell what there is instead, the nearest first."""
        if not tasks:
            return ": nothing was enqueued at all"
        near = [task for task in tasks if task.type == self.type]
        lines = []
        for task in sorted(near, key=lambda task: len(self.differences(task))):
            what = "; ".join(self.differences(task)[:_MOST_DIFFERENCES]) or "fits"
            lines.append(f"  task {task.id}: {what}")
        if lines:
            told = f"\nof this type there {'is' if len(near) == 1 else 'are'}:\n" + _cut(lines)
        else:
            close = difflib.get_close_matches(self.type, {task.type for task in tasks}, n=1)
            told = f"\ndid you mean {close[0]!r}?" if close else ""
        return f"{told}\nenqueued in all ({len(tasks)}):\n{_listed(tasks)}"

    def __str__(self) -> str:
        parts = [f"task {self.type!r}"]
        if self.is_predicate:
            parts.append(f"payload={_name(self.payload)}")
        elif self.expected is not _ANYTHING:
            parts.append(f"payload={_shown(self.expected)}")
        parts.extend(f"{name}={value!r}" for name, value in self.options.items())
        return " ".join(parts)


def _option(task: Task[Any], name: str) -> Any:
    if name in _ONLY_CAPTURED and not isinstance(task, CapturedTask):
        raise TypeError(
            f"assert_enqueued({name}=...): a task in the database does not tell it: look through a "
            "capture, a context or an outcome, or compare run_at"
        )
    return getattr(task, name)


def _plain(value: Any) -> Any:
    """Return a value as it looks after its way through JSON; what JSON cannot hold stays."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    try:
        return json.decode(json.encode(value))
    except PayloadError:
        return value


def _differences(actual: Any, expected: Any, path: str) -> list[str]:
    if isinstance(actual, dict) and isinstance(expected, dict):
        found = []
        for key in [*expected, *(key for key in actual if key not in expected)]:
            place = f"{path}.{key}"
            if key not in actual:
                found.append(f"{place} is missing, expected {_shown(expected[key])}")
            elif key not in expected:
                found.append(f"{place} is {_shown(actual[key])}, expected to be absent")
            else:
                found.extend(_differences(actual[key], expected[key], place))
        return found
    if isinstance(actual, list) and isinstance(expected, list) and len(actual) == len(expected):
        return [
            difference
            for i, (one, other) in enumerate(zip(actual, expected, strict=True))
            for difference in _differences(one, other, f"{path}[{i}]")
        ]
    # 1 == True in Python, not in JSON.
    is_same_kind = isinstance(actual, bool) == isinstance(expected, bool) or not isinstance(
        expected, bool | int | float
    )
    if is_same_kind and expected == actual:
        return []
    return [f"{path} is {_shown(actual)}, expected {_shown(expected)}"]


def _listed(tasks: Sequence[Task[Any]]) -> str:
    return _cut([f"  {task.id:>3}  {task.type}  {_shown(task.payload)}" for task in tasks])


def _cut(lines: list[str]) -> str:
    left = len(lines) - _MOST_TASKS
    shown = lines if left <= 0 else [*lines[:_MOST_TASKS], f"  and {left} more"]
    return "\n".join(shown)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_PAYLOAD else f"{text[:_LONGEST_PAYLOAD]}..."


def _name(function: Any) -> str:
    return getattr(function, "__qualname__", None) or repr(function)
