"""The rules that single settings obey: what a value may be, and how a wrong one is answered.

Where values come from, what they are called and the rules between two settings belong to
`config.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.durations import seconds, spell

# Longer times overflow timers and timestamps; nobody means them.
LONGEST_SECONDS = 3650 * 86400.0

_TRUE = {"true", "yes", "on", "1"}
_FALSE = {"false", "no", "off", "0"}
# Up to the last "@" of the address: a password that was not escaped may hold one.
_IN_ADDRESS = re.compile(r"(://[^:@/\s]*):[^@\s]*@(?:[^@\s/?#]*@)*")
_IN_QUERY = re.compile(r"([?&][a-z_]*password=)[^&\s]*", re.IGNORECASE)
# libpq's keyword = value pairs; a value with spaces is quoted, or has them escaped.
_IN_PAIRS = re.compile(
    r"(password\s*=\s*)(?:'(?:[^'\\]|\\.)*(?:'|$)|(?:[^\s\\]|\\.)+)", re.IGNORECASE
)


class Broken(ValueError):
    """A value breaks its rule. Reads on after the value: `must be ..., remedy`."""


class Rule:
    """What one setting may be. `unit` is that of its number, "" without one."""

    unit: str = ""

    def check(self, value: object) -> Any:
        """Return the value as the program uses it, from what TOML gave.

        Raises:
            Broken: with the rule and the remedy.
        """
        raise NotImplementedError

    def parse(self, text: str) -> object:
        """Return what TOML would have given for the text of an environment variable."""
        return text

    def spread(self, name: str, checked: Any) -> dict[str, Any]:
        """Return the fields of the section that a checked value of this key fills."""
        return {name: checked}

    def gather(self, section: object, name: str) -> Any:
        """Return the checked value that `spread` filled into a section."""
        return getattr(section, name)

    def written(self, checked: Any) -> object:
        """Return what TOML would have to give for a checked value, without secrets.

        None for a key that is not set.
        """
        return checked


@dataclass(frozen=True)
class Duration(Rule):
    """A time, kept in seconds: "500ms", "30s", "1h 30m", or a number of seconds.

    `word` is a text that stands for None: no limit.
    """

    minimum: float = 0.0
    word: str | None = None
    unit = "duration"

    def check(self, value: object) -> float | None:
        if self.word is not None and value == self.word:
            return None
        example = ' write "500ms", "30s", "1m" or "7d"'
        if self.word is not None:
            example += f', or "{self.word}" for no limit'
        if not isinstance(value, str | int | float):
            raise Broken(f"must be a duration:{example}")
        try:
            number = seconds(value)
        except ValueError:
            raise Broken(f"must be a duration:{example}") from None
        if number < self.minimum:
            raise Broken(f"must be at least {spell(self.minimum)}:{example}")
        if number > LONGEST_SECONDS:
            raise Broken(f"must be at most {spell(LONGEST_SECONDS)}:{example}")
        return number

    def parse(self, text: str) -> object:
        # Programs that set variables often write bare seconds.
        try:
            return float(text)
        except ValueError:
            return text

    def written(self, checked: float | None) -> object:
        if checked is None:
            return self.word
        spelled = spell(checked)
        return spelled if seconds(spelled) == checked else checked


@dataclass(frozen=True)
class Whole(Rule):
    """A whole number within bounds; `words` are texts that stand for a number found at load."""

    minimum: int
    maximum: int
    words: Mapping[str, Callable[[], int]] = field(default_factory=dict)
    unit: str = ""

    def check(self, value: object) -> int:
        if isinstance(value, str) and value in self.words:
            value = self.words[value]()
        if (
            isinstance(value, bool)
            or not isinstance(value, int)
            or not self.minimum <= value <= self.maximum
        ):
            or_words = "".join(f' or "{word}"' for word in self.words)
            raise Broken(
                f"must be a whole number from {self.minimum} to {self.maximum}{or_words}: "
                f"write it without quotes and without unit, such as {self.minimum}"
            )
        return value

    def parse(self, text: str) -> object:
        try:
            return int(text)
        except ValueError:
            return text


@dataclass(frozen=True)
class Flag(Rule):
    """True or false."""

    def check(self, value: object) -> bool:
        if not isinstance(value, bool):
            raise Broken("must be true or false: write one of these two, without quotes")
        return value

    def parse(self, text: str) -> object:
        word = text.lower()
        return True if word in _TRUE else False if word in _FALSE else text


@dataclass(frozen=True)
class Choice(Rule):
    """One of a few words."""

    words: tuple[str, ...]
    remedy: str = "write one of them"

    def check(self, value: object) -> str:
        if not isinstance(value, str) or value not in self.words:
            words = " or ".join(f'"{word}"' for word in self.words)
            raise Broken(f"must be {words}: {self.remedy}")
        return value


@dataclass(frozen=True)
class Text(Rule):
    """A text of one line, of a shape that `pattern` holds and `shape` says."""

    pattern: str = r"[^\x00-\x1f\x7f]+"
    shape: str = "a text of one line, not empty"
    remedy: str = "write it in quotes, or leave the key out"

    def check(self, value: object) -> str:
        if not isinstance(value, str) or re.fullmatch(self.pattern, value) is None:
            raise Broken(f"must be {self.shape}: {self.remedy}")
        return value


@dataclass(frozen=True)
class Texts(Rule):
    """A list of texts; in an environment variable separated by commas."""

    item: Text
    is_empty_allowed: bool = True

    def check(self, value: object) -> tuple[str, ...]:
        if not isinstance(value, list) or not (value or self.is_empty_allowed):
            raise Broken(
                f'must be a list{"" if self.is_empty_allowed else ", not empty"}: write ["..."], '
                "in an environment variable a,b"
            )
        for item in value:
            try:
                self.item.check(item)
            except Broken as broken:
                raise Broken(f"has {shown(item)}, which {broken}") from None
        if len(set(value)) != len(value):
            raise Broken("names something twice: name it once")
        return tuple(value)

    def parse(self, text: str) -> object:
        return [part.strip() for part in text.split(",") if part.strip()]


@dataclass(frozen=True)
class Queues(Rule):
    """The queues of a pool: a list is the order in which they are served, a table their weights.

    "*" is all others. A list fills `queues`; a table fills `queues` with its names and `weights`
    with their numbers. In an environment variable "a,b" is a list and "a=3,b=1" a table.
    """

    heaviest: int = 1000

    def check(self, value: object) -> tuple[str, ...] | dict[str, int]:
        if isinstance(value, dict):
            return self._weighted(value)
        names = Texts(self._name(), is_empty_allowed=False)
        if not isinstance(value, list) or not value:
            raise Broken(
                "must be a list of queues in the order in which they are served, or a table of "
                'their weights, not empty: write ["a", "b"] or { a = 3, b = 1 }, in an environment '
                "variable a,b or a=3,b=1"
            )
        in_order = names.check(value)
        if "*" in in_order[:-1]:
            raise Broken(
                'must have "*" (all other queues) in the last place: move it there, '
                "since what follows it would never have a turn of its own"
            )
        return in_order

    def _name(self) -> Text:
        return Text(
            r"\*|[A-Za-z0-9][A-Za-z0-9_.:/-]{0,199}",
            'the name of a queue or "*"',
            "use letters, digits and _.:/-, at most 200, beginning with a letter or digit",
        )

    def _weighted(self, table: dict[str, object]) -> dict[str, int]:
        if not table:
            raise Broken("must name at least one queue: write { a = 3, b = 1 }")
        weights = {}
        for name, weight in table.items():
            try:
                weights[self._name().check(name)] = Whole(1, self.heaviest).check(weight)
            except Broken as broken:
                wrong = weight if re.fullmatch(self._name().pattern, name) else name
                raise Broken(f"has {shown(wrong)}, which {broken}") from None
        return weights

    def parse(self, text: str) -> object:
        parts = [part.strip() for part in text.split(",") if part.strip()]
        if "=" not in text:
            return parts
        pairs = [part.partition("=") for part in parts]
        table = {name.strip(): Whole(1, self.heaviest).parse(weight) for name, _, weight in pairs}
        # A queue that is named twice has no weight; the text itself is refused.
        return table if len(table) == len(pairs) else text

    def spread(self, name: str, checked: Any) -> dict[str, Any]:
        if isinstance(checked, dict):
            return {name: tuple(checked), "weights": tuple(checked.values())}
        return {name: checked}

    def gather(self, section: Any, name: str) -> Any:
        if section.weights:
            return dict(zip(section.queues, section.weights, strict=True))
        return section.queues


@dataclass(frozen=True)
class DatabaseUrl(Rule):
    """Where a PostgreSQL server is; `word` is a text that stands for one of our own."""

    word: str | None = None

    def check(self, value: object) -> str:
        if isinstance(value, str):
            if self.word is not None and value == self.word:
                return value
            if re.match(r"postgres(ql)?(\+[a-z0-9_]+)?://\S*$", value):
                return value
            # libpq's other spelling: keyword = value pairs.
            if "://" not in value and re.match(r"\s*[a-z_]+\s*=", value):
                return value
        or_word = f' or "{self.word}"' if self.word else ""
        raise Broken(
            f"must be the URL of a PostgreSQL database{or_word}: "
            'write "postgresql://user:password@host:5432/database"'
        )

    def written(self, checked: str | None) -> object:
        return None if checked is None else redacted(checked)


@dataclass(frozen=True)
class Bind(Rule):
    """An address to listen at, "host:port"; "" (or "off") for none."""

    def check(self, value: object) -> str:
        if value in ("", "off"):
            return ""
        if isinstance(value, str):
            _, separator, port = value.rpartition(":")
            has_host = re.fullmatch(r"(\[[0-9A-Fa-f:.%a-z]+\]|[^\s:\[\]]*):\d+", value)
            if separator and has_host and int(port) <= 65535:
                return value
        raise Broken(
            'must be "host:port" with a port up to 65535: write "127.0.0.1:9090", '
            '"[::1]:9090", ":9090" for all addresses, or "off"'
        )

    def written(self, checked: str) -> object:
        return checked or "off"


def shown(value: object) -> str:
    """Write a value as the file would have it, shortened, with passwords hidden."""
    hidden = _redacted(value)
    try:
        text = json.dumps(hidden, ensure_ascii=False, default=str)
    except (TypeError, ValueError):
        text = redacted(repr(hidden))
    return text if len(text) <= 120 else text[:117] + "..."


def redacted(text: str) -> str:
    """Return the address of a database, in any spelling, with "***" for its passwords."""
    if "://" in text:
        text = _IN_QUERY.sub(r"\1***", _IN_ADDRESS.sub(r"\1:***@", text))
        # Perhaps pairs with an address in them; then the end of a value is wherever it may be.
        return text if _IN_QUERY.search(text) else _IN_PAIRS.sub(r"\1***", text)
    return _IN_PAIRS.sub(r"\1***", text)


def _redacted(value: object) -> object:
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, list):
        return [_redacted(item) for item in value]
    if isinstance(value, dict):
        return {key: _redacted(item) for key, item in value.items()}
    return value
