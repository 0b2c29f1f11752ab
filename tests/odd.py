"""Odd things that handlers return and raise, and what is to become of them.

Each result is made by a function, so that a worker of a node can make it as well. `REFUSED` names
part of the reason with which its task is dead at once.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import uuid
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock, Mock

import msgspec
import numpy as np

from orchestrator import Context, Mux, Retry

mux = Mux()


@mux.handler("odd:return")
def give_back(ctx: Context[Any], payload: str) -> Any:
    make, _ = {**KEPT, **REFUSED}[payload]
    return make()


@mux.handler("odd:return_async")
async def give_back_async(ctx: Context[Any], payload: str) -> Any:
    return give_back(ctx, payload)


@mux.handler("odd:raise", retry=Retry(max_attempts=2, base=0, cap=0))
def give_up(ctx: Context[Any], payload: str) -> None:
    raise RAISED[payload]()


@mux.handler("odd:raise_async", retry=Retry(max_attempts=2, base=0, cap=0))
async def give_up_async(ctx: Context[Any], payload: str) -> None:
    raise RAISED[payload]()


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: Any
    y: Any = None


class Struct(msgspec.Struct):
    x: Any


Pair = namedtuple("Pair", "left right")


class Model:
    """As pydantic's: it is asked for its fields."""

    def __init__(self, dumped: Any) -> None:
        self.dumped = dumped

    def model_dump(self, mode: str) -> Any:
        return self.dumped


class _Raising:
    """An object whose every way to JSON raises."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class RaisingModel(_Raising):
    def model_dump(self, mode: str) -> Any:
        raise self.error


class RaisingItem(_Raising):
    def item(self) -> Any:
        raise self.error


class RaisingAttributes(_Raising):
    def __getattr__(self, name: str) -> Any:
        raise self.error


class RaisingMapping(_Raising, Mapping[str, Any]):
    def __getitem__(self, key: str) -> Any:
        raise self.error

    def __iter__(self) -> Iterator[str]:
        raise self.error

    def __len__(self) -> int:
        raise self.error


class RaisingList(list[Any]):
    def __iter__(self) -> Iterator[Any]:
        raise OSError("no iteration")


class EndlessItem:
    def item(self) -> Any:
        return EndlessItem()


class EndlessModel:
    def model_dump(self, mode: str) -> Any:
        return {"next": self}


class EndlessMapping(Mapping[str, Any]):
    """Has itself as its only value."""

    def __getitem__(self, key: str) -> Any:
        return self

    def __iter__(self) -> Iterator[str]:
        return iter(["again"])

    def __len__(self) -> int:
        return 1


class Unprintable(Exception):
    def __str__(self) -> str:
        raise OSError("no str")

    __repr__ = __str__


class UnprintableKey:
    def __repr__(self) -> str:
        raise OSError("no repr")


class StrangeText(str):
    def __str__(self) -> str:
        raise OSError("no str")


class StrangeInteger(int):
    def __index__(self) -> int:
        raise OSError("no index")

    __int__ = __index__


def deep(levels: int, kind: str = "list") -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value] if kind == "list" else {"a": value}
    return value


def cycle() -> Any:
    value: list[Any] = []
    value.append({"again": value})
    return value


# What comes back: the value, or what the documents say that becomes of it.
KEPT: dict[str, tuple[Callable[[], Any], Any]] = {
    "nothing": (lambda: None, None),
    "text with NUL": (lambda: "a\0b", "a\ufffdb"),
    "lone surrogate": (lambda: {"\ud800": "\udfff"}, {"\ufffd": "\ufffd"}),
    "not a number": (lambda: [float("nan"), float("inf"), -float("inf")], [None] * 3),
    "large integer": (lambda: 10**4299, 10**4299),
    "minus zero": (lambda: -0.0, -0.0),
    "bytes": (lambda: b"\xff\0", "/wA="),
    "set": (lambda: {5}, [5]),
    "frozenset": (lambda: frozenset({"a"}), ["a"]),
    "tuple": (lambda: (1, (2,)), [1, [2]]),
    "named tuple": (lambda: Pair(1, 2), [1, 2]),
    "ordered": (lambda: OrderedDict(a=1), {"a": 1}),
    "integer keys": (lambda: {1: "a", 2.5: "b"}, {"1": "a", "2.5": "b"}),
    "time": (
        lambda: dt.datetime(2026, 1, 31, 9, 30, tzinfo=dt.UTC),
        "2026-01-31T09:30:00Z",
    ),
    "naive time": (lambda: dt.datetime(2026, 1, 31, 9, 30), "2026-01-31T09:30:00"),  # noqa: DTZ001
    "date": (lambda: dt.date(2026, 1, 31), "2026-01-31"),
    "duration": (lambda: dt.timedelta(seconds=90), "PT90S"),
    "uuid": (lambda: uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    "decimal": (lambda: decimal.Decimal("1.10"), "1.10"),
    "enum": (lambda: Colour.RED, "red"),
    "dataclass": (
        lambda: Point(Point(float("nan")), [b"a"]),
        {"x": {"x": None, "y": None}, "y": ["YQ=="]},
    ),
    "struct": (lambda: Struct({1}), {"x": [1]}),
    "model": (lambda: Model({"a": Model([1])}), {"a": [1]}),
    "numpy": (
        lambda: {
            "f": np.float64(1.5),
            "i": np.int8(-3),
            "b": np.bool_(True),
            "n": np.float32("nan"),
        },
        {"f": 1.5, "i": -3, "b": True, "n": None},
    ),
    "numpy array without dimensions": (lambda: np.array(7), 7),
    "numpy in a dataclass": (lambda: Point(np.int64(3)), {"x": 3, "y": None}),
    "just deep enough": (lambda: deep(64), deep(64)),
    "subclass of str": (lambda: StrangeText("text"), "text"),
    "subclass of int": (lambda: StrangeInteger(5), 5),
}

REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "object": (object, "result: "),
    "function": (lambda: deep, "result: "),
    "class": (lambda: {"a": int}, "result.a: "),
    "generator": (lambda: [iter("ab")], "result[0]: "),
    "numpy array": (lambda: {"a": [np.zeros(3)]}, "result.a[0]: "),
    "complex": (lambda: 1j, "result: "),
    "too large an integer": (lambda: {"n": 10**4300}, "result.n: "),
    "far too large an integer": (lambda: [1 << 10_000_000], "result[0]: "),
    "too deep": (lambda: deep(65), "is nested deeper than 64 levels"),
    "far too deep": (lambda: deep(100_000), "is nested deeper than 64 levels"),
    "far too deep a mapping": (lambda: deep(100_000, "dict"), "is nested deeper than 64 levels"),
    "cycle": (cycle, "is nested deeper than 64 levels"),
    "cycle of mappings": (EndlessMapping, "is nested deeper than 64 levels"),
    "cycle of models": (EndlessModel, "is nested deeper than 64 levels"),
    "cycle in a dataclass": (lambda: _self_holding(Point(1)), "is nested deeper than 64 levels"),
    "item that never ends": (EndlessItem, "result: "),
    "mock": (Mock, "result: "),
    "magic mock": (lambda: {"a": MagicMock()}, "result.a: "),
    "too large": (lambda: "x" * 300_000, "limit"),
    "keys that become one": (lambda: {"\0": 1, "\ufffd": 2}, "two keys"),
    "key that is no text": (lambda: {"a": {(1, 2): 3}}, "result.a: "),
    "key that cannot be printed": (lambda: {"a": {UnprintableKey(): 3}}, "result.a: "),
    "namespace": (lambda: SimpleNamespace(a=1), "result: "),
    "model that raises": (lambda: [RaisingModel(ValueError("no"))], "result[0]: "),
    "item that raises": (lambda: {"a": RaisingItem(KeyError("no"))}, "result.a: "),
    "item that exits": (lambda: {"a": RaisingItem(SystemExit(3))}, "result.a: "),
    "model that is interrupted": (lambda: RaisingModel(KeyboardInterrupt()), "result: "),
    "item that cannot say why": (lambda: {"a": RaisingItem(Unprintable())}, "result.a: "),
    "attributes that raise": (lambda: [RaisingAttributes(OSError("no"))], "result[0]: "),
    "mapping that raises": (lambda: {"a": RaisingMapping(OSError("no"))}, "result.a: "),
    "list that raises": (lambda: {"a": RaisingList([1])}, "result.a: "),
    "model in a dataclass that raises": (lambda: Point(RaisingModel(OSError("no"))), "result.x: "),
}  # fmt: skip


def _self_holding(point: Point) -> Point:
    point.y = point
    return point


class Huge(Exception):
    def __str__(self) -> str:
        return "x" * 50_000_000


class Recursive(Exception):
    def __str__(self) -> str:
        return str(self)


class Exiting(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


class NoText(Exception):
    def __str__(self) -> Any:
        return 5  # noqa: PLE0307 - on purpose


class UnprintableBase(BaseException):
    def __str__(self) -> str:
        raise Unprintable


def _chained() -> BaseException:
    error: BaseException = ValueError("first")
    for number in range(5000):
        outer = ValueError(f"{number}")
        outer.__cause__ = error
        error = outer
    return error


def _self_caused() -> BaseException:
    error = ValueError("own cause")
    error.__cause__ = error
    error.__context__ = error
    return error


RAISED: dict[str, Callable[[], BaseException]] = {
    "unprintable": Unprintable,
    "unprintable base": UnprintableBase,
    "huge": Huge,
    "recursive": Recursive,
    "exiting": Exiting,
    "no text": NoText,
    "strange text": lambda: ValueError("\0\ud800\u2028\x1b[31m\x00" * 10),
    "strange arguments": lambda: ValueError(UnprintableKey(), object()),
    "group": lambda: ExceptionGroup("many", [ValueError(str(n)) for n in range(2000)]),
    "chained": _chained,
    "own cause": _self_caused,
    "system exit": lambda: SystemExit(UnprintableKey()),
    "generator exit": GeneratorExit,
    "stop iteration": lambda: StopIteration(5),
    "syntax error": lambda: SyntaxError("no", ("f\0", 10**9, -5, "\ud800")),
    "unicode error": lambda: UnicodeDecodeError("utf-8", b"\xff" * 10**6, 0, 1, "no"),
    "many notes": lambda: _noted(ValueError("noted")),
}


def _noted(error: BaseException) -> BaseException:
    for number in range(1000):
        error.add_note(f"note {number} \0\ud800")
    return error
