"""Task types and the options of an enqueue: what is refused, and what is filled in."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Literal, NewType, Optional

import pytest

from orchestrator.enqueueing import encode_payload, normalise
from orchestrator.errors import PayloadError
from orchestrator.tasktype import TaskType

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


def test_task_type_fills_in_what_the_call_leaves_out() -> None:
    shared: TaskType[Any, Any] = TaskType("a", dict, queue="cpu", priority=5, ttl="1m")

    options = normalise(shared)

    assert (options.type, options.queue, options.priority, options.ttl) == ("a", "cpu", 5, 60.0)


def test_call_goes_before_the_task_type() -> None:
    shared: TaskType[Any, Any] = TaskType("a", dict, queue="cpu", priority=5, ttl="1m")

    options = normalise(shared, queue="gpu", priority=0, ttl=2)

    assert (options.queue, options.priority, options.ttl) == ("gpu", 0, 2.0)


def test_plain_type_has_the_plain_defaults() -> None:
    options = normalise("a")

    assert (options.queue, options.priority, options.ttl, options.tags) == ("default", 0, None, ())
    assert options.headers == b"{}"


def test_durations_and_times_become_seconds_and_utc() -> None:
    there = timezone(timedelta(hours=2))

    assert normalise("a", delay=timedelta(minutes=1)).delay == 60.0
    assert normalise("a", timeout="1h 30m").timeout == 5400.0
    assert normalise("a", run_at=NOON.astimezone(there)).run_at == NOON
    assert normalise("a", run_at=NOON.astimezone(there)).run_at.tzinfo is UTC  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["", "a:", ":a", "-a", "a b", "a\0", "é", "x" * 201, 7, None])
def test_name_that_the_database_refuses_is_refused_before(name: Any) -> None:
    with pytest.raises(PayloadError, match="task type"):
        normalise(name)
    with pytest.raises(PayloadError, match="task type"):
        TaskType(name, dict)


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"queue": "a b"}, "queue 'a b'"),
        ({"priority": 32768}, "priority = 32768: must be an integer from -32768 to 32767"),
        ({"priority": True}, "priority = True"),
        ({"priority": 1.0}, "priority = 1.0"),
        ({"run_at": datetime(2026, 1, 31)}, "no time zone"),  # noqa: DTZ001
        ({"run_at": "tomorrow"}, "must be a datetime"),
        ({"run_at": NOON, "delay": 1}, "run_at and delay are both given"),
        ({"delay": -1}, "delay"),
        ({"delay": "1 fortnight"}, "delay"),
        ({"delay": 1e300}, "at most 100 years"),
        ({"timeout": 0}, "timeout = 0: must be more than zero"),
        ({"ttl": 0}, "ttl = 0"),
        ({"max_attempts": 0}, "max_attempts = 0: must be an integer from 1"),
        ({"idempotency_key": ""}, "has 0 bytes"),
        ({"idempotency_key": "é" * 501}, "has 1002 bytes"),
        ({"idempotency_key": "a\0"}, "NUL"),
        ({"idempotency_key": 5}, "must be a string"),
        ({"tags": "nightly"}, "must be a list of strings"),
        ({"tags": ["a", ""]}, r"tags\[1\]"),
        ({"tags": ["\ud800"]}, "lone surrogates"),
        ({"tags": ["a"] * 51}, "at most 50"),
        ({"headers": [1]}, "headers"),
        ({"headers": {1: 2}}, "must map strings"),
        ({"headers": {"a": {"b": object()}}}, r"headers\.a\.b"),
        ({"headers": {"a": "x" * 70_000}}, "at most 65536"),
    ],
)
def test_option_that_breaks_its_rule_is_refused_by_name(options: Any, rule: str) -> None:
    with pytest.raises(PayloadError, match=rule):
        normalise("a", **options)


@dataclass
class Order:
    number: int


order = TaskType("order", Order)


def test_a_payload_of_the_class_that_holds_what_does_not_fit_is_refused() -> None:
    with pytest.raises(PayloadError, match=r"^payload\.number: Expected `int`, got `str`"):
        encode_payload(order, Order("five"))  # type: ignore[arg-type]


def test_a_payload_beside_a_plain_string_is_not_judged() -> None:
    assert encode_payload("order", Order("five")) == b'{"number":"five"}'  # type: ignore[arg-type]


def test_whatever_the_code_of_a_payload_type_raises_is_a_payload_error() -> None:
    @dataclass
    class Broken:
        number: int

        def __post_init__(self) -> None:
            raise KeyError("number")

    with pytest.raises(PayloadError, match=r"^payload: KeyError: 'number'"):
        encode_payload(TaskType("broken", Broken), {"number": 1})


@pytest.mark.parametrize("wrong", ["Order", {"number": int}, Order(1), 5], ids=repr)
def test_what_is_no_type_is_none_of_a_payload_or_result(wrong: Any) -> None:
    with pytest.raises(PayloadError, match=r"^TaskType\('a'\): payload = .* must be a type"):
        TaskType("a", wrong)
    with pytest.raises(PayloadError, match=r"^TaskType\('a'\): result = .* must be a type"):
        TaskType("a", dict, wrong)


@pytest.mark.parametrize(
    "kind",
    [Any, None, list[Order], Order | None, Optional[Order], Literal["a"], NewType("N", int)],  # noqa: UP045
    ids=repr,
)
def test_whatever_stands_for_a_type_is_one(kind: Any) -> None:
    assert TaskType("a", kind, kind).payload is kind
