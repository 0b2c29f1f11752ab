"""Odd payloads and options through a real database, by both clients.

Each comes back equal, or was refused with its path and a reason; nothing else is ever raised.
"""

from __future__ import annotations

import asyncio
import dataclasses
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, TypedDict

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from orchestrator import AsyncClient, Client, PayloadError, Task, TaskType
from orchestrator.db.connection import Session
from orchestrator.outcome import Ending, Outcome
from orchestrator.payload import clean_result, decode, encode
from orchestrator.store.finish import finish
from tests.integration.test_attempts import register, take
from tests.sql import rows

WITH_DATABASE = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
# With surrogates, NUL, NaN, infinities, huge and tiny numbers.
TEXT = st.text(alphabet=st.characters(), max_size=20) | st.sampled_from(["\0", "a\0b", "\ud800"])
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


class Enqueuer(Protocol):
    """What the two clients have in common here."""

    def enqueue(self, type: Any, payload: Any = None, **options: Any) -> Task[Any]: ...
    def get(self, task: Any) -> Task[Any]: ...
    def cancel(self, task: Any) -> Task[Any]: ...


class Awaiting:
    """An AsyncClient, each of whose verbs is awaited to its end."""

    def __init__(self, client: AsyncClient, runner: asyncio.Runner) -> None:
        self._client = client
        self._runner = runner

    def enqueue(self, type: Any, payload: Any = None, **options: Any) -> Task[Any]:
        return self._runner.run(self._client.enqueue(type, payload, **options))

    def get(self, task: Any) -> Task[Any]:
        return self._runner.run(self._client.get(task))

    def cancel(self, task: Any) -> Task[Any]:
        return self._runner.run(self._client.cancel(task))


@pytest.fixture(params=["Client", "AsyncClient"])
def either(request: pytest.FixtureRequest, dsn: str) -> Iterator[Enqueuer]:
    """Give both clients in turn."""
    if request.param == "Client":
        with Client(dsn) as client:
            yield client
        return
    with asyncio.Runner() as runner:
        awaited = AsyncClient(dsn)
        yield Awaiting(awaited, runner)
        runner.run(awaited.close())


# A path, or the name of an option, and then a reason.
REFUSED = re.compile(
    r"(payload|headers|tags|queue|priority|run_at|delay|idempotency_key|max_attempts|timeout|ttl)"
    r"\b.+\w{2}",
    re.DOTALL,
)


def enqueued(client: Enqueuer, type: Any, payload: Any, **options: Any) -> Task[Any] | None:
    """Return the task as it is read back; None where it was refused, as the rule says."""
    try:
        task = client.enqueue(type, payload, **options)
    except PayloadError as error:
        assert REFUSED.match(str(error)), error
        return None
    found = client.get(task.id)
    # The next draw may have the same idempotency key.
    client.cancel(found)
    return found


@WITH_DATABASE
@given(payload=ANY_JSON)
@example(payload=[1e300, 1e16, 1.5e17, 5e-324, -0.0, 1.0, 10**4299, 2**64, -(2**63) - 1])
@example(payload={"": {"'\\\"": "%s {schema} %(id)s", "\x7f\x1f\u2028": "\U0010ffff"}})
def test_payload_comes_back_equal_and_of_the_same_kind_or_is_refused_with_its_path(
    either: Enqueuer, payload: Any
) -> None:
    found = enqueued(either, "a", payload)

    if found is not None:
        assert found.payload == payload
        assert kinds(found.payload) == kinds(payload)


ANYTHING = st.recursive(
    SCALARS
    | st.binary(max_size=8)
    | st.decimals()
    | st.fractions()
    | st.complex_numbers()
    | st.dates()
    | st.datetimes()
    | st.times()
    | st.timedeltas()
    | st.uuids()
    | st.builds(object)
    | st.just(print)
    | st.just(int),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.frozensets(st.integers() | TEXT, max_size=3)
        | st.dictionaries(SCALARS | st.tuples(SCALARS), inner, max_size=3)
    ),
    max_leaves=6,
)


@WITH_DATABASE
@given(payload=ANYTHING)
def test_payload_of_any_kind_is_stored_or_refused_with_its_path(
    either: Enqueuer, payload: Any
) -> None:
    found = enqueued(either, "a", payload)

    if found is not None:
        # What is no JSON of itself is written as JSON, and is then what is kept.
        assert either.get(either.enqueue("a", found.payload)).payload == found.payload


NUMBERS = st.integers() | st.floats() | st.booleans() | st.integers(-40000, 40000)
DURATIONS = NUMBERS | TEXT | st.timedeltas() | st.floats(0, 1e10) | st.just("1h 30m")
OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "queue": TEXT | st.sampled_from(["q", "a:b/c.d-e_f", "q" * 200, "q" * 201]) | NUMBERS,
    "priority": NUMBERS | TEXT | st.integers(-32768, 32767),
    "run_at": st.datetimes() | st.datetimes(timezones=st.timezones()) | NUMBERS | TEXT,
    "delay": DURATIONS,
    "timeout": DURATIONS,
    "ttl": DURATIONS,
    "max_attempts": NUMBERS | TEXT | st.integers(1, 32767),
    "idempotency_key": st.text(max_size=1100) | SCALARS,
    "tags": st.lists(TEXT | SCALARS, max_size=60) | st.lists(TEXT, max_size=4) | SCALARS,
    "headers": ANY_JSON | st.dictionaries(TEXT, ANY_JSON, max_size=3),
}
# Of all at once, one would nearly always be refused.
FEW_OPTIONS = st.sets(st.sampled_from(sorted(OPTIONS)), min_size=1, max_size=3).flatmap(
    lambda names: st.fixed_dictionaries({name: OPTIONS[name] for name in sorted(names)})
)


@WITH_DATABASE
@given(options=FEW_OPTIONS)
@example(options={"run_at": datetime.max.replace(tzinfo=UTC), "ttl": timedelta(days=36600)})
@example(options={"run_at": datetime.min.replace(tzinfo=UTC)})
@example(options={"ttl": 5e-324, "timeout": 5e-324, "delay": 5e-324})
@example(options={"idempotency_key": "\u00fc" * 500, "tags": ["\U0010ffff" * 200] * 50})
def test_options_come_back_equal_or_one_is_refused_by_its_name(
    either: Enqueuer, options: dict[str, Any]
) -> None:
    found = enqueued(either, "a", None, **options)

    if found is None:
        return
    asked = {name: value for name, value in options.items() if value is not None}
    assert found.queue == asked.get("queue", "default")
    assert found.priority == asked.get("priority", 0)
    assert found.max_attempts == asked.get("max_attempts")
    assert found.idempotency_key == asked.get("idempotency_key")
    assert found.headers == asked.get("headers", {})
    assert kinds(found.headers) == kinds(asked.get("headers", {}))
    assert found.tags == tuple(asked.get("tags", ()))
    if "run_at" in asked:
        assert found.run_at == asked["run_at"]


class Note(TypedDict, total=False):
    title: str
    sizes: list[float]
    extra: Any


@dataclasses.dataclass
class Letter:
    text: str
    weight: float
    notes: list[Note]
    by_name: dict[str, int]


class Parcel(msgspec.Struct):
    letters: list[Letter]
    stamp: int | str | None = None


NOTES = st.fixed_dictionaries(
    {}, optional={"title": TEXT, "sizes": st.lists(st.floats(), max_size=3), "extra": ANY_JSON}
)
LETTERS = st.builds(
    Letter,
    text=TEXT,
    weight=st.floats(),
    notes=st.lists(NOTES, max_size=2),
    by_name=st.dictionaries(TEXT, st.integers(-(2**63), 2**63 - 1), max_size=3),
)
PARCELS = st.builds(
    Parcel, letters=st.lists(LETTERS, max_size=2), stamp=st.none() | st.integers() | TEXT
)


@WITH_DATABASE
@given(payload=st.one_of(NOTES, LETTERS, PARCELS))
def test_typed_payload_comes_back_as_what_it_was_or_is_refused_with_its_path(
    either: Enqueuer, payload: Any
) -> None:
    payload_type = Note if isinstance(payload, dict) else type(payload)

    found = enqueued(either, TaskType("typed", payload_type), payload)

    if found is not None:
        assert decode(encode(found.payload), payload_type) == payload


@WITH_DATABASE
@given(result=ANY_JSON)
@example(result={"\0": 1, "\ud800": 2})
def test_result_is_cleaned_so_that_the_database_takes_it_or_refused_with_its_path(
    session: Session, result: Any
) -> None:
    try:
        encoded = clean_result(result)
    except PayloadError as error:
        assert re.match(r"result\b.*: .+\w{2}", str(error), re.DOTALL)
        return

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
