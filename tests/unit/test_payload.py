"""What a payload may be, how it is written, and how it is read."""

from __future__ import annotations

import dataclasses
import enum
import logging
import math
from collections import Counter
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, NamedTuple, TypedDict
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import PayloadError
from orchestrator.payload import (
    MAX_DEPTH,
    MAX_DIGITS,
    clean_result,
    clean_text,
    decode,
    encode,
    read,
)


@dataclasses.dataclass
class Item:
    name: str
    extra: Any = None


class Order(msgspec.Struct, rename="camel"):
    all_items: list[Item]


class Point(NamedTuple):
    x: int
    y: int


class Colour(enum.StrEnum):
    RED = "red"


class Mail(TypedDict):
    to: str


class Model:
    """What pydantic's models look like from outside."""

    def __init__(self, n: int) -> None:
        self.n = n

    @classmethod
    def model_validate(cls, value: dict[str, Any]) -> Model:
        if not isinstance(value.get("n"), int):
            raise ValueError("1 validation error for Model: n must be an integer")
        return cls(value["n"])

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        assert mode == "json"
        return {"n": self.n}


class Scalar:
    """What numpy's scalars look like from outside."""

    ndim = 0

    def __init__(self, value: Any) -> None:
        self.value = value

    def item(self) -> Any:
        return self.value


class Array(Scalar):
    ndim = 1


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth - 1):
        value = [value]
    return value


# -- what is refused, and where


@pytest.mark.parametrize(
    ("payload", "place", "rule"),
    [
        ({"items": [{}, {}, {}, {"name": "a\0b"}]}, "payload.items[3].name", "NUL"),
        ({"a b": {"x": float("nan")}}, 'payload["a b"].x', "nan"),
        ([1, [2, float("-inf")]], "payload[1][1]", "-inf"),
        ({"a": "\ud800"}, "payload.a", "lone surrogate"),
        ({"a": {"k\0": 1}}, "payload.a", "key 'k\\x00'"),
        ({"a": {"\udfff": 1}}, "payload.a", "lone surrogate"),
        ({"a": {1: 2}}, "payload.a", "keys must be strings"),
        ({"a": [object()]}, "payload.a[0]", "of type object"),
        ({"a": {"f": len}}, "payload.a.f", "builtin_function"),
        ({"n": 10**MAX_DIGITS}, "payload.n", "4300 digits"),
        ({"n": -(10**MAX_DIGITS)}, "payload.n", "4300 digits"),
        ({"items": [Item("a"), Item("b\0")]}, "payload.items[1].name", "NUL"),
        (Order([Item("a", float("inf"))]), "payload.allItems[0].extra", "inf"),
        (Order([Item("a", {"o": Order([object()])})]), "payload.all_items[0].extra.o", "object"),
        ("\0", "payload", "NUL"),
    ],
)
def test_what_json_cannot_hold_is_refused_with_its_place(
    payload: Any, place: str, rule: str
) -> None:
    with pytest.raises(PayloadError) as caught:
        encode(payload)

    assert str(caught.value).startswith(place)
    assert rule in str(caught.value)


def test_place_begins_with_the_name_that_is_given() -> None:
    with pytest.raises(PayloadError, match=r"^payloads\[7\]\.a: "):
        encode({"a": "\0"}, root="payloads[7]")


def test_depth_ends_at_its_limit() -> None:
    encode(nested(MAX_DEPTH))

    with pytest.raises(PayloadError, match="deeper than 64 levels"):
        encode(nested(MAX_DEPTH + 1))


def test_cycle_is_refused_in_a_short_message() -> None:
    endless: list[Any] = []
    endless.append(endless)
    loop = Item("a")
    loop.extra = loop

    for payload in (endless, loop):
        with pytest.raises(PayloadError, match="deeper than 64 levels") as caught:
            encode(payload)
        assert len(str(caught.value)) < 300


def test_depth_counts_through_objects() -> None:
    with pytest.raises(PayloadError, match="deeper than 64 levels"):
        encode([Item("a", nested(MAX_DEPTH - 1))])


# -- what is written


@pytest.mark.parametrize(
    ("payload", "json"),
    [
        (None, b"null"),
        ((1, 2), b"[1,2]"),
        (Point(1, 2), b"[1,2]"),
        (Colour.RED, b'"red"'),
        ({Colour.RED: True}, b'{"red":true}'),
        (Item("a"), b'{"name":"a","extra":null}'),
        (Order([]), b'{"allItems":[]}'),
        (Counter("aab"), b'{"a":2,"b":1}'),
        (Model(3), b'{"n":3}'),
        ({"m": [Model(3)]}, b'{"m":[{"n":3}]}'),
        (Item("a", Model(3)), b'{"name":"a","extra":{"n":3}}'),
        (Scalar(2.5), b"2.5"),
        ({"when": datetime(2030, 1, 2, tzinfo=UTC)}, b'{"when":"2030-01-02T00:00:00Z"}'),
        (UUID(int=7), b'"00000000-0000-0000-0000-000000000007"'),
        (Decimal("1.50"), b'"1.50"'),
        (b"abc", b'"YWJj"'),
        ("\U0001f600", '"\U0001f600"'.encode()),
        (10**MAX_DIGITS - 1, b"9" * MAX_DIGITS),
    ],
)
def test_what_python_has_and_json_has_not_is_written_as_json(payload: Any, json: bytes) -> None:
    assert encode(payload) == json


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_float_is_written_without_exponent_where_jsonb_would_make_it_an_integer(
    number: float,
) -> None:
    written = encode(number).decode()

    assert float(written) == number
    # PostgreSQL's numeric keeps a fraction that is written, and turns 1.5e300 into an integer.
    assert "e-" in written or ("." in written and "e" not in written)


# -- results


def test_result_is_cleaned_of_what_jsonb_cannot_hold(caplog: pytest.LogCaptureFixture) -> None:
    result = {"nan": [float("nan"), math.inf, 1.5], "t\0": "a\0b\ud800", "np": Scalar(Scalar(2))}

    with caplog.at_level(logging.WARNING):
        encoded = clean_result(result)

    assert read(encoded.decode()) == {
        "nan": [None, None, 1.5],
        "t\ufffd": "a\ufffdb\ufffd",
        "np": 2,
    }
    assert len(caplog.records) == 1


def test_clean_result_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    clean_result({"a": [1, 2.5, "x", None]})

    assert caplog.records == []


def test_keys_of_a_result_that_are_numbers_become_strings() -> None:
    assert clean_result({404: 1, 2.5: 2}) == b'{"404":1,"2.5":2}'


@pytest.mark.parametrize(
    "result", [{1: "a", "1": "b"}, {(1, 2): 3}, object(), Array([1, 2]), nested(MAX_DEPTH + 1)]
)
def test_result_that_cannot_be_written_is_an_error(result: Any) -> None:
    with pytest.raises(PayloadError, match=r"^result"):
        clean_result(result)


@given(st.text(alphabet=st.characters()))
def test_clean_text_can_be_kept(text: str) -> None:
    cleaned = clean_text(text)

    assert "\0" not in cleaned
    cleaned.encode("utf-8")


# -- reading


@pytest.mark.parametrize(
    ("json", "type", "value"),
    [
        ('{"name": "a", "unknown": 1}', Item, Item("a")),
        ('{"allItems": [{"name": "a"}]}', Order, Order([Item("a")])),
        ('{"to": "x"}', Mail, {"to": "x"}),
        ("[1, 2]", Point, Point(1, 2)),
        ('{"1": "a"}', dict[int, str], {1: "a"}),
        ('{"a": [1]}', Any, {"a": [1]}),
    ],
)
def test_payload_is_read_as_its_type(json: str, type: Any, value: Any) -> None:
    assert decode(json, type) == value


def test_pydantic_model_is_read_by_its_own_means() -> None:
    assert decode('{"n": 3}', Model).n == 3


@pytest.mark.parametrize(
    ("json", "type", "place"),
    [
        ('{"allItems": [{"name": 3}]}', Order, "payload.allItems[0].name: "),
        ("[]", Item, "payload: "),
        ('{"n": "x"}', Model, "payload: "),
        ('{"name": ', Item, "payload: "),
        # Interpreters differ in how deep they go: 1,000 levels, or 10,000.
        ("[" * 100_000 + "]" * 100_000, Any, "payload: "),
        ("9" * 5000, Any, "payload: "),
    ],
)
def test_payload_that_does_not_fit_is_an_error_with_its_place(
    json: str, type: Any, place: str
) -> None:
    with pytest.raises(PayloadError) as caught:
        decode(json, type)

    assert str(caught.value).startswith(place)


def test_numbers_that_other_programs_enqueued_can_be_looked_at() -> None:
    found = read('{"n": ' + "9" * 5000 + ', "x": 1e400}')

    assert found["n"] == Decimal("9" * 5000)
    assert found["x"] == math.inf
