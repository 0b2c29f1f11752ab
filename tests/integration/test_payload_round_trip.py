"""Odd payloads through a real database: they come back equal, or were refused with their path."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from orchestrator import Client, PayloadError, TaskType
from orchestrator.db.connection import Session
from orchestrator.outcome import Ending, Outcome
from orchestrator.payload import clean_result, decode
from orchestrator.store.finish import finish
from tests.integration.test_attempts import register, take
from tests.sql import rows

WITH_DATABASE = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
# With surrogates, NUL, NaN, infinities, huge and tiny numbers.
TEXT = st.text(alphabet=st.characters(), max_size=20)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(10**400), max_value=10**400)
    | st.floats()
    | st.floats(min_value=1e15, max_value=1e24)
    | TEXT
)
ANY_JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


def kinds(value: Any) -> Any:
    """The types of everything in a value, since 1 == 1.0 == True."""
    if isinstance(value, dict):
        return {key: kinds(item) for key, item in value.items()}
    if isinstance(value, list):
        return [kinds(item) for item in value]
    return type(value)


@WITH_DATABASE
@given(payload=ANY_JSON)
@example(payload=[1e300, 1e16, 1.5e17, 5e-324, -0.0, 1.0, 10**4299, 2**64, -(2**63) - 1])
@example(payload={"": {"'\\\"": "%s {schema} %(id)s", "\x7f\x1f\u2028": "\U0010ffff"}})
def test_payload_comes_back_equal_and_of_the_same_kind_or_is_refused_with_its_path(
    client: Client, payload: Any
) -> None:
    try:
        task = client.enqueue("a", payload)
    except PayloadError as error:
        assert str(error).startswith("payload")
        return

    found = client.get(task).payload
    assert found == payload
    assert kinds(found) == kinds(payload)


@WITH_DATABASE
@given(result=ANY_JSON)
def test_cleaned_result_is_never_refused_by_the_database(session: Session, result: Any) -> None:
    encoded = clean_result(result)

    stored = rows(session, "select (%(json)s::jsonb)::text", json=encoded.decode())

    assert decode(stored[0][0]) == decode(encoded)


@dataclasses.dataclass
class Part:
    name: str
    size: float
    sizes: dict[int, float] = dataclasses.field(default_factory=dict)


class Order(msgspec.Struct):
    parts: list[Part]
    due: datetime
    note: str | None = None


ORDERS = st.builds(
    Order,
    parts=st.lists(
        st.builds(
            Part,
            name=st.text(max_size=5).filter(lambda text: "\0" not in text),
            size=st.floats(allow_nan=False, allow_infinity=False),
            sizes=st.dictionaries(st.integers(), st.floats(0, 1e30), max_size=3),
        ),
        max_size=3,
    ),
    due=st.datetimes(timezones=st.just(UTC)),
)


@WITH_DATABASE
@given(order=ORDERS)
def test_typed_payload_is_read_as_what_it_was(client: Client, order: Order) -> None:
    task = client.enqueue(TaskType("order", Order), order)

    found = client.get(task.id).payload

    assert decode(msgspec.json.encode(found), Order) == order


def test_dict_that_its_task_type_cannot_read_is_refused_at_enqueue(client: Client) -> None:
    order = TaskType("order", Order)

    with pytest.raises(PayloadError, match=r"^payload\.parts\[0\]\.size: Expected `float`"):
        client.enqueue(order, {"parts": [{"name": "a", "size": "big"}], "due": "2030-01-01"})

    assert list(client.tasks()) == []


def test_result_is_of_the_type_that_the_task_was_enqueued_with(
    client: Client, session: Session
) -> None:
    task = client.enqueue(TaskType("a", dict, Part), {})
    (claimed,) = take(session, register(session), token=9)
    result = clean_result({"name": "x", "size": 2.5})
    finish(session, [(claimed, Outcome(ending=Ending.SUCCEEDED, result=result))])

    assert client.result(task, timeout=5) == Part("x", 2.5)
    assert client.get(task).result == Part("x", 2.5)
    assert client.get(task.id).result == {"name": "x", "size": 2.5}


def test_task_with_numbers_beyond_python_can_be_looked_at(client: Client, session: Session) -> None:
    rows(session, "select enqueue('a', ('[' || repeat('9', 9000) || ', 1e-9000]')::jsonb)")

    (found,) = client.tasks()

    assert len(str(found.payload[0])) == 9000
    assert client.get(found.id).id == found.id


def test_limit_of_bytes_is_the_databases(client: Client, session: Session) -> None:
    fits, too_large = "x" * (256 * 1024 - 2), "x" * (256 * 1024 - 1)
    client.enqueue("a", fits)
    with pytest.raises(PayloadError, match=r"^payload: has 262145 bytes .* limit of 262144"):
        client.enqueue("a", too_large)

    rows(session, "update setting set value = 1000000 where name = 'max_payload_bytes'")

    assert client.get(client.enqueue("a", too_large)).payload == too_large
