"""JSON in and out: what a payload, header or result may be, and how it is written and read.

Everything is kept as jsonb, which knows less than Python: no NUL, no lone surrogates, no NaN, no
endless numbers. `encode` refuses these, naming the JSON path, so that an enqueue fails where the
mistake is; `clean_result` replaces them, because throwing away finished work would be worse. Plain
dicts, lists, strings, numbers, booleans and None come back equal. Everything else that msgspec can
write (dataclasses, Structs, dates, UUIDs, bytes, sets, ...) and pydantic models are written as
JSON and become themselves again only through a type given to `decode`.

The limit of bytes is a setting of the schema, so its enforcement is the database's and the
client's.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import math
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

import msgspec

from orchestrator.errors import PayloadError

MAX_DEPTH = 64
# What Python reads back (sys.int_info.default_max_str_digits); jsonb holds 131,072.
MAX_DIGITS = 4300
# The defaults of `max_payload_bytes` and `max_result_bytes` in the table `setting`.
DEFAULT_MAX_BYTES = 256 * 1024

_REPLACEMENT = "\ufffd"
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SURROGATE = re.compile("[\ud800-\udfff]")
# Beyond, floats are written with an exponent, and jsonb would give back an integer.
_FIRST_EXPONENT = 1e16
# Steps of a path that are spelled out in a message, and characters of what an error says.
_LONGEST_PATH = 16
_LONGEST_TEXT = 500

_log = logging.getLogger(__name__)


def encode(value: Any, *, root: str = "payload") -> bytes:
    """Return a payload as JSON; `root` is its name in messages.

    Raises:
        PayloadError: a part of it is no JSON; the message begins with the path of that part, such
            as `payload.items[3].name`.
    """
    return _encoded(value, _Strict(), root)


def clean_result(value: Any) -> bytes:
    """Return the result of a handler as JSON.

    Not-a-number and infinities become null, NUL and lone surrogates U+FFFD, with one warning in
    the log; keys that are numbers become strings.

    Raises:
        PayloadError: a part of it cannot be written as JSON, or it is deeper than 64 levels.
    """
    writer = _Cleaning()
    encoded = _encoded(value, writer, "result")
    if writer.cleaned:
        _log.warning("result.cleaned: %s", "; ".join(sorted(writer.cleaned)))
    return encoded


def clean_text(text: str) -> str:
    """Return text that PostgreSQL can keep: NUL and lone surrogates become U+FFFD."""
    return _SURROGATE.sub(_REPLACEMENT, text.replace("\0", _REPLACEMENT))


def decode(text: str | bytes, type: Any = Any, *, root: str = "payload") -> Any:
    """Return what JSON stands for, as `type`: a class that msgspec knows, or a pydantic model.

    Unknown fields are ignored.

    Raises:
        PayloadError: it does not fit the type; the message begins with the path.
    """
    try:
        if hasattr(type, "model_validate"):
            return _validated(type, text)
        return _decoder(type).decode(text)
    except (ValueError, RecursionError) as error:
        # msgspec's own path begins with "$".
        rule, _, path = str(error).partition(" - at `$")
        place = root + path.removesuffix("`")
        name = "" if type is Any else f" (to be read as {getattr(type, '__name__', type)})"
        raise PayloadError(f"{place}: {rule}{name}") from error
    except Exception as error:
        # Code of the type's own (`__post_init__`, a validator), or a type that cannot be read.
        raise PayloadError(f"{root}: {qualified_name(error)}: {error}") from error


def qualified_name(error: BaseException) -> str:
    """Name the type of an exception, with its module unless it is a builtin or one of ours."""
    kind = type(error)
    if kind.__module__ in ("builtins", "orchestrator.errors"):
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


def read(text: str) -> Any:
    """Return what JSON stands for, whatever is in it: numbers that fit nothing become Decimal.

    For looking at tasks that other programs enqueued; a handler gets its payload by `decode`.
    """
    try:
        return msgspec.json.decode(text)
    except (ValueError, RecursionError):
        return json.loads(text, parse_int=_integer)


@functools.lru_cache(maxsize=1024)
def _decoder(type: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(type, dec_hook=_inner_model)


def _inner_model(type: Any, value: Any) -> Any:
    """Read a pydantic model within a type of msgspec's; what is none, msgspec refuses itself."""
    if hasattr(type, "model_validate"):
        return _validated(type, msgspec.json.encode(value))
    return value


def _validated(model: Any, text: str | bytes) -> Any:
    # A strict model takes text for a date or a UUID only where it knows that it reads JSON.
    if hasattr(model, "model_validate_json"):
        return model.model_validate_json(text)
    return model.model_validate(msgspec.json.decode(text))


def _dumped(model: Any) -> Any:
    """Write a pydantic model as its class reads it: by the aliases of its fields, if it has any."""
    fields = getattr(type(model), "model_fields", None)
    if not isinstance(fields, Mapping):
        return model.model_dump(mode="json")
    # An alias for writing only is none that the class reads.
    is_one_way = any(
        field.serialization_alias not in (None, field.validation_alias) for field in fields.values()
    )
    return model.model_dump(mode="json", by_alias=not is_one_way)


def _integer(digits: str) -> int | Decimal:
    return int(digits) if len(digits) <= MAX_DIGITS else Decimal(digits)


def _encoded(value: Any, writer: _Strict, root: str) -> bytes:
    try:
        return msgspec.json.encode(writer.plain(value, 0))
    except _Refusal as refusal:
        raise PayloadError(f"{_spelled(root, refusal.path)}: {refusal.rule}") from refusal.__cause__
    except writer.caught as error:
        raise PayloadError(f"{root}: {_rule_of(error)}") from error


class _Refusal(Exception):
    """A broken rule; the path, from the inside out, grows on the way up."""

    def __init__(self, rule: str, *path: str | int) -> None:
        super().__init__(rule)
        self.rule = rule
        self.path = list(path)


def _spelled(root: str, path: list[str | int]) -> str:
    steps = [_step(step) for step in reversed(path)]
    if len(steps) > _LONGEST_PATH:
        steps[_LONGEST_PATH // 2 : -_LONGEST_PATH // 2] = [" ... "]
    return root + "".join(steps)


def _step(step: str | int) -> str:
    if isinstance(step, int):
        return f"[{step}]"
    if _IDENTIFIER.fullmatch(step):
        return f".{step}"
    return f"[{json.dumps(step)}]"


def _rule_of(error: BaseException) -> str:
    """Put into words what stopped the writing: msgspec, or code of the value itself."""
    try:
        text = str(error)[:_LONGEST_TEXT]
    except BaseException:  # noqa: BLE001 - that is code of the value's as well
        text = "(it cannot be printed)"
    if isinstance(error, _Refusal | TypeError | ValueError | OverflowError) and text:
        return text
    return f"cannot be written as JSON, {type(error).__qualname__}: {text}"


class _Strict:
    """Turns a value into plain JSON types, or raises `_Refusal`.

    `caught` is what the value's own code (`model_dump`, `item`, iteration) may raise: refusals too.
    """

    caught: type[BaseException] = Exception

    def plain(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if kind is str:
            return self.text(value)
        if kind is bool or value is None:
            return value
        if kind is int:
            return self.integer(value)
        if kind is float:
            return self.number(value)
        if kind is dict or isinstance(value, Mapping):
            return self.mapping(value, depth + 1)
        if isinstance(value, list | tuple):
            return self.sequence(value, depth + 1)
        return self.plain_of_other(value, depth)

    def mapping(self, value: Mapping[Any, Any], depth: int) -> dict[str, Any]:
        self.check_depth(depth)
        plain: dict[str, Any] = {}
        for key, item in value.items():
            name = self.key(key)
            if name in plain:
                raise _Refusal(f"two keys are both written {name!r}: rename one")
            try:
                plain[name] = self.plain(item, depth)
            except _Refusal as refusal:
                refusal.path.append(name)
                raise
            except self.caught as error:
                raise _Refusal(_rule_of(error), name) from error
        return plain

    def sequence(self, value: list[Any] | tuple[Any, ...], depth: int) -> list[Any]:
        self.check_depth(depth)
        plain = []
        for index, item in enumerate(value):
            try:
                plain.append(self.plain(item, depth))
            except _Refusal as refusal:
                refusal.path.append(index)
                raise
            except self.caught as error:
                raise _Refusal(_rule_of(error), index) from error
        return plain

    def check_depth(self, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise _Refusal(
                f"is nested deeper than {MAX_DEPTH} levels: flatten it, or is it a cycle?"
            )

    def key(self, key: Any) -> str:
        if not isinstance(key, str):
            raise _Refusal(f"has the key {key!r}: keys must be strings")
        try:
            return self.text(str.__str__(key))
        except _Refusal as refusal:
            raise _Refusal(f"has the key {key!r}, which {refusal.rule}") from None

    def text(self, value: str) -> str:
        if "\0" in value:
            raise _Refusal("holds a NUL character, which PostgreSQL cannot keep: remove it")
        if not value.isascii() and (found := _SURROGATE.search(value)):
            raise _Refusal(
                f"holds the lone surrogate {found[0]!r}, which is no Unicode text: decode with "
                "errors='replace', or encode the bytes as base64"
            )
        return value

    def integer(self, value: int) -> int:
        # A digit takes 3.3 bits: with fewer there is no need to count.
        if value.bit_length() > 3 * MAX_DIGITS and abs(value) >= 10**MAX_DIGITS:
            raise _Refusal(f"is an integer of more than {MAX_DIGITS} digits: pass it as text")
        return value

    def number(self, value: float) -> Any:
        if not math.isfinite(value):
            raise _Refusal(f"is {value}, and JSON has only finite numbers: use None or text")
        if abs(value) >= _FIRST_EXPONENT:
            return msgspec.Raw(f"{Decimal(repr(value)):f}.0".encode())
        return value

    def plain_of_other(self, value: Any, depth: int) -> Any:
        if isinstance(value, str):
            return self.text(str.__str__(value))
        if isinstance(value, int):
            return self.integer(int.__index__(value))
        if isinstance(value, float):
            return self.number(float.__float__(value))
        if hasattr(type(value), "model_dump"):  # pydantic
            return self.plain(_dumped(value), depth)
        if hasattr(value, "item") and not getattr(value, "ndim", 0):  # a numpy scalar
            return self.plain(value.item(), depth)
        try:
            builtins = msgspec.to_builtins(value, str_keys=True, enc_hook=_unknown)
        except self.caught as error:
            self._locate(value, depth)
            raise _Refusal(_rule_of(error)) from error
        return self.plain(builtins, depth)

    def _locate(self, value: Any, depth: int) -> None:
        """Raise for the field of an object that msgspec could not write, if it is one field."""
        self.check_depth(depth + 1)
        for name, item in _fields(value):
            try:
                self.plain(item, depth + 1)
            except _Refusal as refusal:
                refusal.path.append(name)
                raise
            except self.caught as error:
                raise _Refusal(_rule_of(error), name) from error


class _Cleaning(_Strict):
    """Replaces what jsonb cannot hold, and remembers that it did."""

    # Where a handler has returned, nothing that its result raises is meant for the worker.
    caught = BaseException

    def __init__(self) -> None:
        self.cleaned: set[str] = set()

    def key(self, key: Any) -> str:
        if isinstance(key, int | float) and not isinstance(key, bool):
            return str(key)
        return super().key(key)

    def text(self, value: str) -> str:
        clean = clean_text(value)
        if clean != value:
            self.cleaned.add("NUL characters or lone surrogates became U+FFFD")
        return clean

    def number(self, value: float) -> Any:
        if not math.isfinite(value):
            self.cleaned.add("NaN or infinity became null")
            return None
        return super().number(value)


def _unknown(value: Any) -> Any:
    if hasattr(type(value), "model_dump"):
        return _dumped(value)
    if hasattr(value, "item") and not getattr(value, "ndim", 0):
        return value.item()
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__index__(value)
    if isinstance(value, float):
        return float.__float__(value)
    raise _Refusal(f"is of type {type(value).__qualname__}, which cannot be written as JSON")


def _fields(value: Any) -> Iterator[tuple[str | int, Any]]:
    if isinstance(value, msgspec.Struct):
        names = value.__struct_fields__
    elif dataclasses.is_dataclass(value):
        names = tuple(field.name for field in dataclasses.fields(value))
    elif isinstance(value, list | tuple | set | frozenset):
        yield from enumerate(value)
        return
    else:
        return
    for name in names:
        yield name, getattr(value, name, None)
