"""Whatever a handler returns or raises: it is kept, or its task is dead at once and says why.

Through the runner and the statements of a worker, on PostgreSQL. `tests/process/test_odd_ends.py`
has the same through a node.
"""

from __future__ import annotations

import base64
import math
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from orchestrator import Client, Mux, Retry, State, Task
from orchestrator.failure import MAX_MESSAGE_BYTES, MAX_TRACEBACK_BYTES
from orchestrator.payload import MAX_DEPTH, MAX_DIGITS
from orchestrator.testing import drain
from tests.odd import KEPT, RAISED, REFUSED, Model, Pair, Point, Struct

WITH_DATABASE = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
TEXT = st.text(alphabet=st.characters(exclude_categories=()), max_size=12)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(10 ** (MAX_DIGITS + 5)), max_value=10 ** (MAX_DIGITS + 5))
    | st.floats()
    | TEXT
    | st.binary(max_size=8)
)
KEYS = TEXT | st.integers() | st.floats(allow_nan=False) | st.none() | st.booleans()


def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return (
        st.lists(inner, max_size=4)
        | st.dictionaries(TEXT, inner, max_size=4)
        | st.dictionaries(KEYS, inner, max_size=3)
        | st.tuples(inner, inner)
        | st.builds(Point, inner, inner)
        | st.builds(Struct, inner)
        | st.builds(Pair, inner, inner)
        | st.builds(Model, inner)
        | st.integers(1, MAX_DEPTH + 2).flatmap(lambda n: inner.map(lambda it: wrapped(it, n)))
    )


def wrapped(value: Any, levels: int) -> Any:
    for _ in range(levels):
        value = [value]
    return value


RESULTS = st.recursive(SCALARS, nested, max_leaves=8)


def ended(client: Client, result: Any) -> Task[Any]:
    """Have a handler return a value; return its task as it is afterwards."""
    mux = Mux()
    mux.handle("odd", lambda ctx, payload: result)
    task = client.enqueue("odd")
    drain(mux, client)
    return client.get(task)


class _Refused(Exception):
    """A value that cannot be kept."""


def expected(value: Any, depth: int = 0) -> Any:
    """Return what is to come back, by the rules of docs/handlers.md, written once more."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        if abs(value) >= 10**MAX_DIGITS:
            raise _Refused
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return "".join("\ufffd" if c == "\0" or "\ud800" <= c <= "\udfff" else c for c in value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Model):
        return expected(value.dumped, depth)
    if isinstance(value, Point):
        value = {"x": value.x, "y": value.y}
    if isinstance(value, Struct):
        value = {"x": value.x}
    if depth + 1 > MAX_DEPTH:
        raise _Refused
    if isinstance(value, dict):
        return _expected_mapping(value, depth + 1)
    return [expected(item, depth + 1) for item in value]


def _expected_mapping(value: dict[Any, Any], depth: int) -> dict[str, Any]:
    found = {}
    for key, item in value.items():
        is_number = isinstance(key, int | float) and not isinstance(key, bool)
        if not isinstance(key, str) and not is_number:
            raise _Refused
        name = str(key) if is_number else expected(key)
        if name in found:
            raise _Refused
        found[name] = expected(item, depth)
    return found


@WITH_DATABASE
@given(result=RESULTS)
@example(result={1: "a", "1": "b"})
@example(result={"a": float("inf"), "b": b"\0"})
@example(result=Point(Model(Struct([float("nan")])), {"\0": "\ud800"}))
def test_a_result_comes_back_cleaned_or_its_task_is_dead_with_path_and_reason(
    client: Client, result: Any
) -> None:
    task = ended(client, result)

    try:
        wanted = expected(result)
    except _Refused:
        assert task.state is State.DEAD
        assert task.attempt == 1
        assert str(task.error).partition(": ")[2].startswith("result")
        assert ": " in str(task.error)
    else:
        assert task.state is State.SUCCEEDED, task.error
        assert task.result == wanted
        assert repr(task.result) == repr(wanted) or isinstance(wanted, dict | list)


@pytest.mark.parametrize("name", KEPT)
def test_a_result_is_kept(client: Client, name: str) -> None:
    make, wanted = KEPT[name]

    task = ended(client, make())

    assert (task.state, task.error) == (State.SUCCEEDED, None)
    assert task.result == wanted


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_kept_is_dead_at_once_and_says_where_and_why(
    client: Client, name: str
) -> None:
    make, reason = REFUSED[name]

    task = ended(client, make())

    assert (task.state, task.attempt) == (State.DEAD, 1)
    error = str(task.error)
    assert error.startswith("PayloadError: ")
    assert reason in error
    assert len(error) < 5000


@pytest.mark.parametrize("name", RAISED)
def test_whatever_a_handler_raises_is_recorded_as_a_failure(client: Client, name: str) -> None:
    def handler(ctx: Any, payload: Any) -> None:
        raise RAISED[name]()

    mux = Mux()
    mux.handle("odd", handler, retry=Retry(max_attempts=2, base=0, cap=0))
    task = client.enqueue("odd")

    drain(mux, client)

    found = client.get(task)
    assert (found.state, found.attempt) == (State.DEAD, 2)
    for attempt in found.attempts:
        assert attempt.outcome == "failed"
        assert attempt.error
        assert len(attempt.error.encode()) < MAX_MESSAGE_BYTES + 200
        assert len((attempt.traceback or "").encode()) <= MAX_TRACEBACK_BYTES


@WITH_DATABASE
@given(text=st.text(alphabet=st.characters(exclude_categories=()), max_size=300))
def test_the_text_of_an_exception_is_kept_but_for_what_postgresql_cannot_hold(
    client: Client, text: str
) -> None:
    def handler(ctx: Any, payload: Any) -> None:
        raise ValueError(text)

    mux = Mux()
    mux.handle("odd", handler, retry=Retry(max_attempts=1))
    task = client.enqueue("odd")

    drain(mux, client)

    assert client.get(task).error == (f"ValueError: {expected(text)}" if text else "ValueError")
