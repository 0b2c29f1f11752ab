"""The task type: what enqueueing needs to know about one kind of task, and its naming rules.

A `TaskType` is shared by the programs that enqueue and the workers that run, so it lives in a
light module of the user's. What running needs (retries, limits) stands at the handler (`mux`);
checking the options of one enqueue is `enqueueing`'s.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Generic, NoReturn, TypeVar, Union, overload

from orchestrator.durations import seconds
from orchestrator.errors import PayloadError

P = TypeVar("P")
R = TypeVar("R")
Q = TypeVar("Q")

# A payload beside the TaskType that says its type. The function, which nobody has, makes mypy look
# at the TaskType first and then judge the payload by it; otherwise {"to": "a"} would be a dict for
# it that is no TypedDict, and [1] no list[float]. tests/typing holds that it does.
PayloadOf = Union[P, Callable[[P], NoReturn]]  # noqa: UP007

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/-]{0,199}")
_MIN_PRIORITY, _MAX_PRIORITY = -32768, 32767
# PostgreSQL's time stamps end long after this; what is longer is a mistake of units.
_MAX_SECONDS = 100 * 366 * 86400.0


class TaskType(Generic[P, R]):
    """A kind of task: its name, the type of its payload and result, and where it is queued.

    `payload` and `result` are a dict, a dataclass, a TypedDict, a msgspec.Struct or a pydantic
    model; None for `result` leaves results as plain JSON values. `ttl` is the time from `run_at`
    after which a task that has not started expires; None keeps it for ever. An enqueue call may
    override queue, priority and ttl.

    Raises:
        PayloadError: a name or a number breaks its rule.
    """

    __slots__ = ("name", "payload", "priority", "queue", "result", "ttl")

    # Without a type of result there is nothing that R could be inferred from.
    @overload
    def __init__(
        self: TaskType[Q, Any],
        name: str,
        payload: type[Q],
        result: None = None,
        *,
        queue: str = "default",
        priority: int = 0,
        ttl: str | float | timedelta | None = None,
    ) -> None: ...

    @overload
    def __init__(
        self,
        name: str,
        payload: type[P],
        result: type[R],
        *,
        queue: str = "default",
        priority: int = 0,
        ttl: str | float | timedelta | None = None,
    ) -> None: ...

    def __init__(
        self,
        name: str,
        payload: type[Any],
        result: type[Any] | None = None,
        *,
        queue: str = "default",
        priority: int = 0,
        ttl: str | float | timedelta | None = None,
    ) -> None:
        self.name = check_type_name(name)
        self.payload = _check_class(self.name, "payload", payload)
        self.result = _check_class(self.name, "result", result)
        self.queue = check_queue_name(queue)
        self.priority = check_priority(priority)
        self.ttl = None if ttl is None else check_seconds("ttl", ttl)

    def __repr__(self) -> str:
        return f"TaskType({self.name!r}, {getattr(self.payload, '__name__', self.payload)!s})"


def _check_class(name: str, what: str, given: Any) -> Any:
    # What stands for a type and is no class (Optional[...], Any, NewType) is of these modules.
    is_one = isinstance(given, type) or given is None
    if not is_one and type(given).__module__ not in ("types", "typing", "typing_extensions"):
        raise PayloadError(
            f"TaskType({name!r}): {what} = {given!r}: must be a type, such as dict or a dataclass"
        )
    return given


def check_type_name(name: Any) -> str:
    """Return the name of a task type.

    Raises:
        PayloadError: it is not one.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name.endswith(":"):
        raise PayloadError(
            f"task type {name!r}: must be 1 to 200 of the characters A-Z a-z 0-9 _ . : / -, begin "
            "with a letter or digit and not end with ':' (that marks a pattern of the mux)"
        )
    return name


def check_queue_name(name: Any) -> str:
    """Return the name of a queue.

    Raises:
        PayloadError: it is not one.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise PayloadError(
            f"queue {name!r}: must be 1 to 200 of the characters A-Z a-z 0-9 _ . : / - and begin "
            "with a letter or digit"
        )
    return name


def check_priority(number: Any) -> int:
    """Return a priority.

    Raises:
        PayloadError: it is not one.
    """
    return check_integer("priority", number, _MIN_PRIORITY, _MAX_PRIORITY)


def check_integer(option: str, number: Any, smallest: int, largest: int) -> int:
    """Return an integer within its bounds.

    Raises:
        PayloadError: it is not one; the message names the option.
    """
    is_integer = isinstance(number, int) and not isinstance(number, bool)
    if not is_integer or not smallest <= number <= largest:
        raise PayloadError(
            f"{option} = {number!r}: must be an integer from {smallest} to {largest}"
        )
    return int(number)


def check_seconds(option: str, duration: Any, *, is_zero_allowed: bool = False) -> float:
    """Return a duration in seconds.

    Raises:
        PayloadError: not a duration, zero where that has no meaning, or above 100 years.
    """
    try:
        number = seconds(duration)
    except ValueError as error:
        raise PayloadError(f"{option}: {error}") from error
    if number == 0 and not is_zero_allowed:
        raise PayloadError(f"{option} = {duration!r}: must be more than zero")
    if number > _MAX_SECONDS:
        raise PayloadError(f"{option} = {duration!r}: must be at most 100 years")
    return number
