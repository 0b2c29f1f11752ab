"""The options of an enqueue, checked and completed: one rule for `Client` and for `ctx.enqueue`.

Payloads are `payload`'s; what PostgreSQL makes of the options is `store.enqueue`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TypedDict

import msgspec

from orchestrator.durations import utc
from orchestrator.errors import PayloadError
from orchestrator.payload import decode, encode
from orchestrator.tasktype import (
    TaskType,
    check_integer,
    check_priority,
    check_queue_name,
    check_seconds,
    check_type_name,
)

MAX_KEY_BYTES = 1000
MAX_TAGS, MAX_TAG_LENGTH = 50, 200
MAX_HEADERS_BYTES = 64 * 1024


class Options(TypedDict, total=False):
    """What an enqueue can say for one task or for many: the keyword arguments of the verbs."""

    queue: str | None
    priority: int | None
    run_at: datetime | None
    delay: str | float | timedelta | None
    max_attempts: int | None
    timeout: str | float | timedelta | None
    ttl: str | float | timedelta | None
    tags: Sequence[str]
    headers: Mapping[str, Any] | None


class EnqueueOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What an enqueue asks for besides its payload; durations in seconds, times in UTC.

    `headers` is JSON text. None leaves a decision to others: `run_at` and `delay` to "now",
    `max_attempts` and `timeout` to the handler, `ttl` to "never expires".
    """

    type: str
    queue: str = "default"
    priority: int = 0
    run_at: datetime | None = None
    delay: float | None = None
    idempotency_key: str | None = None
    max_attempts: int | None = None
    timeout: float | None = None
    ttl: float | None = None
    tags: tuple[str, ...] = ()
    headers: bytes = b"{}"


def normalise(
    type: TaskType[Any, Any] | str,
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
) -> EnqueueOptions:
    """Check the options of an enqueue and fill in those of its task type.

    None means "not given" throughout: then the TaskType's queue, priority and ttl count.

    Raises:
        PayloadError: an option breaks its rule, or `run_at` and `delay` are both given.
    """
    shared = type if isinstance(type, TaskType) else None
    if run_at is not None and delay is not None:
        raise PayloadError("run_at and delay are both given: give one of them")
    if queue is None:
        queue = shared.queue if shared else "default"
    if priority is None:
        priority = shared.priority if shared else 0
    if ttl is None and shared:
        ttl = shared.ttl
    return EnqueueOptions(
        type=shared.name if shared else check_type_name(type),
        queue=check_queue_name(queue),
        priority=check_priority(priority),
        run_at=None if run_at is None else check_run_at(run_at),
        delay=None if delay is None else check_seconds("delay", delay, is_zero_allowed=True),
        idempotency_key=check_key(idempotency_key),
        max_attempts=(
            None if max_attempts is None else check_integer("max_attempts", max_attempts, 1, 32767)
        ),
        timeout=None if timeout is None else check_seconds("timeout", timeout),
        ttl=None if ttl is None else check_seconds("ttl", ttl),
        tags=_check_tags(tags),
        headers=_encode_headers(headers),
    )


def encode_payload(type: TaskType[Any, Any] | str, payload: Any, *, root: str = "payload") -> bytes:
    """Return a payload as JSON, which was read as a worker will read it.

    So a dict for a dataclass, or a dataclass with text for a number, fails where the mistake is.

    Raises:
        PayloadError: a part of it is no JSON, or it does not fit its TaskType.
    """
    body = encode(payload, root=root)
    if isinstance(type, TaskType) and type.payload is not Any and type.payload is not None:
        decode(body, type.payload, root=root)
    return body


def check_names(function: str, options: Mapping[str, Any], *, also: Iterable[str] = ()) -> None:
    """Judge the names of options that a function takes as `**options`.

    Raises:
        PayloadError: one key for many tasks.
        TypeError: an option that there is not.
    """
    known = {*Options.__annotations__, *also}
    for name in options:
        if name in known:
            continue
        if name == "idempotency_key":
            raise PayloadError(
                f"{function}(idempotency_key=...) would make all tasks one: give "
                "idempotency_keys, a list with one key per payload"
            )
        raise TypeError(
            f"{function}() got an unexpected keyword argument {name!r}: the options are "
            f"{', '.join(sorted(known))}"
        )


def listed(payloads: Any) -> list[Any]:
    """Return the payloads for many tasks.

    Raises:
        PayloadError: they are none, or what was given is one payload, whose parts would become
            tasks.
    """
    is_one = isinstance(payloads, str | bytes | Mapping) or hasattr(type(payloads), "model_dump")
    if is_one or not isinstance(payloads, Iterable):
        raise PayloadError(
            f"payloads are a {type(payloads).__qualname__}: must be a list (or what can be "
            "iterated over) with one payload per task"
        )
    return list(payloads)


def listed_keys(keys: Any, *, n: int) -> list[str | None]:
    """Return the idempotency keys of `n` tasks, one for each.

    Raises:
        PayloadError: they are not that many, or one breaks its rule.
    """
    if isinstance(keys, str | bytes) or not isinstance(keys, Iterable):
        raise PayloadError(f"idempotency_keys = {keys!r}: must be a list with one key per payload")
    checked = [check_key(key) for key in keys]
    if len(checked) != n:
        raise PayloadError(f"idempotency_keys: {len(checked)} keys for {n} payloads")
    return checked


def check_run_at(value: Any) -> datetime:
    """Return a point in time in UTC.

    Raises:
        PayloadError: not a datetime, or a naive one.
    """
    if not isinstance(value, datetime):
        raise PayloadError(f"run_at = {value!r}: must be a datetime with a time zone")
    try:
        return utc(value)
    except (ValueError, OverflowError) as error:
        raise PayloadError(f"run_at: {error}") from error


def check_key(key: Any) -> str | None:
    """Return an idempotency key; None for none.

    Raises:
        PayloadError: not 1 to 1000 bytes of text that PostgreSQL can keep.
    """
    if key is None:
        return None
    size = len(_as_text("idempotency_key", key))
    if not 1 <= size <= MAX_KEY_BYTES:
        raise PayloadError(
            f"idempotency_key has {size} bytes: must have 1 to {MAX_KEY_BYTES}; hash long keys"
        )
    return str(key)


def _check_tags(tags: Any) -> tuple[str, ...]:
    # A lone string is a sequence of strings too, and never what was meant.
    if isinstance(tags, str | bytes) or not isinstance(tags, Sequence | set | frozenset):
        raise PayloadError(f"tags = {tags!r}: must be a list of strings, such as ['nightly']")
    if len(tags) > MAX_TAGS:
        raise PayloadError(f"tags: {len(tags)} are given, at most {MAX_TAGS} are allowed")
    for number, tag in enumerate(tags):
        _as_text(f"tags[{number}]", tag)
        if not 1 <= len(tag) <= MAX_TAG_LENGTH:
            raise PayloadError(
                f"tags[{number}] = {tag!r}: must have 1 to {MAX_TAG_LENGTH} characters"
            )
    return tuple(tags)


def _encode_headers(headers: Any) -> bytes:
    if headers is None:
        return b"{}"
    if not isinstance(headers, Mapping) or not all(isinstance(name, str) for name in headers):
        raise PayloadError(f"headers = {headers!r}: must map strings to JSON values")
    encoded = encode(dict(headers), root="headers")
    if len(encoded) > MAX_HEADERS_BYTES:
        raise PayloadError(
            f"headers have {len(encoded)} bytes: at most {MAX_HEADERS_BYTES} are allowed"
        )
    return encoded


def _as_text(option: str, value: Any) -> bytes:
    if not isinstance(value, str):
        raise PayloadError(f"{option} = {value!r}: must be a string")
    if "\0" in value:
        raise PayloadError(f"{option} = {value!r}: must not hold a NUL character")
    try:
        return value.encode("utf-8")
    except UnicodeEncodeError:
        raise PayloadError(f"{option} = {value!r}: must not hold lone surrogates") from None
