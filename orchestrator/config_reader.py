"""The reading of settings: layer over layer, each value with its origin, all errors at once.

A value is known by its key: "section.key", and "pool.<position>.key" for pools. What keys there
are, their defaults and the rules between them stand in `config`; the rule of a single value in
`config_rules`; the files in `config_files`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from orchestrator.config_files import Document
from orchestrator.config_rules import Broken, Rule, shown
from orchestrator.errors import ConfigError

VARIABLE_PREFIX = "ORCHESTRATOR__"

# What a pool is called that does not say it.
UNNAMED_POOL = "default"

Sections = Mapping[str, Mapping[str, Rule]]


class Deprecation(NamedTuple):
    """A key that is still understood: what to write in its place, and until when it is.

    `now` is the new key of the same or another section ("node.cancel_grace", for pools
    "pool.queues"); None where the setting has no effect any more. `removed_in` is the version that
    will no longer know the old one.
    """

    now: str | None
    removed_in: str


class Deprecated(msgspec.Struct, frozen=True, kw_only=True):
    """An old key that was met, as people write it, and where; `now` is "" for a retired one."""

    old: str
    now: str
    removed_in: str
    place: str

    def __str__(self) -> str:
        remedy = f"write {self.now} instead" if self.now else "it has no effect, remove it"
        return (
            f"{self.place}: {self.old} is deprecated and will be an error in {self.removed_in}: "
            f"{remedy}"
        )


class _Given(NamedTuple):
    """A value that was given for a key.

    `origin` tells where, `label` how a message calls it, `layer` is the number of the file, or
    one above all files; `line` that in the file. `is_old` if it was given by a deprecated name.
    """

    value: object
    origin: str
    label: str
    layer: int
    line: int
    is_old: bool = False


# Where errors that have no line of a file are shown: after all others.
_ENVIRONMENT, _COMMAND_LINE, _LAST_LINE = 10**9, 10**9 + 1, 10**9


class Reader:
    """Collects what is given for each key, and all errors on the way."""

    def __init__(self, sections: Sections, deprecations: Mapping[str, Deprecation]) -> None:
        self.sections = sections
        self.deprecations = deprecations
        self.given: dict[str, _Given] = {}
        self.broken: set[str] = set()
        self.deprecated: list[Deprecated] = []
        self.n_pools = 0
        self.is_unreadable = False
        self._errors: list[tuple[tuple[int, int], str]] = []
        self._n_files = 0

    # -- layers --------------------------------------------------------------------------------

    def take_document(self, document: Document) -> None:
        """Take the keys of a file; they outrank those of the files before it.

        A pool replaces the one of the same name in an earlier file; others are added.
        """
        page = _Page(document, self._n_files)
        self._n_files += 1
        for name, content in document.content.items():
            if name == "pool":
                self._take_pools(page, content)
            elif name not in self.sections:
                self._refuse(page, name, self._unknown_section(name, content))
            elif isinstance(content, dict):
                self._take_section(page, name, name, content)
            else:
                double = f", not [[{name}]]" if isinstance(content, list) else ""
                self._refuse(
                    page,
                    name,
                    f" must be a section: write [{name}]{double}, and its keys below it",
                )

    def take_unreadable(self, error: ConfigError) -> None:
        """Note a file, or a folder of files, of which nothing else can be said."""
        self.is_unreadable = True
        self._errors.append(((self._n_files, 0), str(error)))
        self._n_files += 1

    def _take_pools(self, page: _Page, content: object) -> None:
        if not isinstance(content, list) or not all(isinstance(pool, dict) for pool in content):
            self._refuse(
                page,
                "pool",
                " must be a list of pools: write [[pool]], with two pairs of brackets, for each",
            )
            return
        earlier = {self._name_of_pool(n): n for n in range(self.n_pools)}
        for position, pool in enumerate(content):
            n = earlier.get(str(pool.get("name", UNNAMED_POOL)), self.n_pools)
            if n == self.n_pools:
                self.n_pools += 1
            self.given = {
                key: given for key, given in self.given.items() if not key.startswith(f"pool.{n}.")
            }
            self._take_section(page, f"pool.{n}", f"pool.{position}", pool)

    def _name_of_pool(self, n: int) -> str:
        given = self.given.get(f"pool.{n}.name")
        return str(given.value) if given else UNNAMED_POOL

    def _take_section(
        self, page: _Page, prefix: str, in_file: str, content: dict[str, Any]
    ) -> None:
        section = prefix.partition(".")[0]
        for name, value in content.items():
            key = f"{in_file}.{name}"
            if name in self.sections[section] or f"{section}.{name}" in self.deprecations:
                self._give(f"{prefix}.{name}", page.given(key, value))
            else:
                self._refuse(page, key, self._unknown_key(section, name))

    def take_environment(self, environ: Mapping[str, str], short: Mapping[str, str]) -> None:
        """Take the variables; an empty one counts as unset, the long names outrank the short."""
        self.n_pools = max(1, self.n_pools)
        for variable, key in short.items():
            if text := environ.get(variable, ""):
                self._take_variable(key, variable, text)
        known = self._variables()
        for variable in sorted(environ):
            if not variable.startswith(VARIABLE_PREFIX) or not environ[variable]:
                continue
            if variable in known:
                self._take_variable(known[variable], variable, environ[variable])
            else:
                remedy = _did_you_mean(variable, {name: name for name in known})
                self._add(f"environment variable {variable} names no setting{remedy}")

    def take_override(self, key: str, text: str) -> None:
        """Take a flag of the command line."""
        label = f"command line, {spelled(key)}"
        if self._is_known(key):
            value = self._parsed(key, text)
            self._give(key, _Given(value, "command line", label, _COMMAND_LINE, _LAST_LINE))
        else:
            self._add(f"{label} names no setting: see docs/configuration.md")

    def _take_variable(self, key: str, variable: str, text: str) -> None:
        origin = f"environment variable {variable}"
        value = self._parsed(key, text)
        self._give(key, _Given(value, origin, origin, _ENVIRONMENT, _LAST_LINE))

    def _parsed(self, key: str, text: str) -> object:
        section, name = parts(self._present(key) or key)
        rule = self.sections[section].get(name)
        return text if rule is None else rule.parse(text.strip())

    def _variables(self) -> dict[str, str]:
        """Return {variable: key} of the long names; a pool is called by its name."""
        known = [(section, name) for section, rules in self.sections.items() for name in rules]
        names: dict[str, str] = {}
        for section, name in [*known, *map(parts, self.deprecations)]:
            if section != "pool":
                names[f"{VARIABLE_PREFIX}{section}__{name}".upper()] = f"{section}.{name}"
                continue
            for n in range(max(1, self.n_pools)):
                middle = re.sub(r"[^A-Za-z0-9]", "_", self._name_of_pool(n))
                variable = f"{VARIABLE_PREFIX}pool__{middle}__{name}".upper()
                names.setdefault(variable, f"pool.{n}.{name}")
        return names

    # -- keys by old and new names -------------------------------------------------------------

    def _give(self, key: str, given: _Given) -> None:
        present = self._present(key)
        if present != key:
            given = given._replace(is_old=True)
            self._warn(key, given)
            if present is None:
                return
        other = self.given.get(present)
        if other is not None and other.layer == given.layer and other.is_old != given.is_old:
            old = given if given.is_old else other
            self._add(
                f"{old.label} is the old name of {_unnumbered(present)}, and both are given: "
                "remove it",
                at=(old.layer, old.line),
            )
        self.given[present] = given

    def _is_known(self, key: str) -> bool:
        section, name = parts(key)
        return name in self.sections.get(section, {}) or f"{section}.{name}" in self.deprecations

    def _present(self, key: str) -> str | None:
        """Return what a key is called now, in the same pool; None if it was retired."""
        section, name = parts(key)
        deprecation = self.deprecations.get(f"{section}.{name}")
        if deprecation is None:
            return key
        if deprecation.now is None or section != "pool":
            return deprecation.now
        return f"{key.rpartition('.')[0]}.{parts(deprecation.now)[1]}"

    def _warn(self, key: str, given: _Given) -> None:
        section, name = parts(key)
        now, removed_in = self.deprecations[f"{section}.{name}"]
        self.deprecated.append(
            Deprecated(
                old=_unnumbered(key),
                now=spelled(now) if now else "",
                removed_in=removed_in,
                place=given.origin,
            )
        )

    # -- checks --------------------------------------------------------------------------------

    def values(self, prefix: str) -> dict[str, Any]:
        """Return the fields of a section ("node", "pool.0") as their rules have them.

        What is wrong is noted, and left out.
        """
        found: dict[str, Any] = {}
        for name, rule in self.sections[prefix.partition(".")[0]].items():
            key = f"{prefix}.{name}"
            given = self.given.get(key)
            if given is None:
                continue
            try:
                found.update(rule.spread(name, rule.check(given.value)))
            except Broken as broken:
                self.broken.add(key)
                self._add(
                    f"{given.label} = {shown(given.value)} {broken}", at=(given.layer, given.line)
                )
        return found

    def add_between(self, keys: tuple[str, ...], message: str) -> None:
        """Note that a rule between several keys is broken."""
        # With a broken value in it, the comparison was with a default.
        if self.broken.intersection(keys):
            return
        given = [self.given[key] for key in keys if key in self.given]
        origins: dict[str | int, str] = {}
        for one in given:
            # One line of each file will do.
            by = one.origin if one.layer >= _ENVIRONMENT else one.layer
            origins.setdefault(by, one.origin)
        in_files = [(one.layer, one.line) for one in given if one.layer < _ENVIRONMENT]
        self._add(
            f"{', '.join(origins.values())}: {message}" if origins else message,
            at=in_files[0] if in_files else (_ENVIRONMENT, _LAST_LINE),
        )

    def refuse_errors(self, source: str) -> None:
        """Report what is wrong, in the order of the files and their lines.

        Raises:
            ConfigError: something is.
        """
        errors = [message for _, message in sorted(self._errors, key=lambda error: error[0])]
        if len(errors) == 1:
            raise ConfigError(errors[0])
        if errors:
            head = f"{len(errors)} settings are wrong ({source or 'no configuration file'}):"
            raise ConfigError("\n".join([head, *("  " + error for error in errors)]))

    # -- words ---------------------------------------------------------------------------------

    def _add(self, message: str, *, at: tuple[int, int] = (_ENVIRONMENT, _LAST_LINE)) -> None:
        self._errors.append((at, message))

    def _refuse(self, page: _Page, key: str, message: str) -> None:
        """Note an error about something that stands in a file."""
        self._add(page.label(key) + message, at=(page.number, page.line(key)))

    def _unknown_section(self, name: str, content: object) -> str:
        if isinstance(content, dict | list):
            headers = {section: _header(section) for section in self.sections}
            return f" is no section of this file{_did_you_mean(name, headers)}"
        homes = self._sections_with(name)
        remedy = f"did you mean {' or '.join(homes)}?" if homes else "remove it"
        return f" stands above all sections: {remedy}"

    def _unknown_key(self, section: str, name: str) -> str:
        homes = self._sections_with(name)
        if homes:
            return f" is no key of this section: did you mean {' or '.join(homes)}?"
        known = {key: key for key in self.sections[section]}
        return f" is no key of this section{_did_you_mean(name, known)}"

    def _sections_with(self, name: str) -> list[str]:
        return [
            f"{_header(section)} {name}"
            for section, rules in self.sections.items()
            if name in rules
        ]


class _Page:
    """A file with its number among those that are read."""

    def __init__(self, document: Document, number: int) -> None:
        self.document = document
        self.number = number

    def line(self, key: str) -> int:
        return self.document.lines.get(key, _LAST_LINE)

    def origin(self, key: str) -> str:
        line = self.document.lines.get(key)
        return f"{self.document.path}:{line}" if line else self.document.path

    def label(self, key: str) -> str:
        return f"{self.origin(key)}, {spelled(key)}"

    def given(self, key: str, value: object) -> _Given:
        return _Given(value, self.origin(key), self.label(key), self.number, self.line(key))


def parts(key: str) -> tuple[str, str]:
    """Return section and name of a key, whichever pool it is of."""
    section, _, rest = key.partition(".")
    return section, rest.rpartition(".")[2]


def spelled(key: str) -> str:
    """Write a key as in the file: "node.name" is "[node] name"."""
    section, name = parts(key)
    if section != "pool":
        return f"{_header(section)} {name}" if name else section
    position = key.split(".")[1] if key.count(".") == 2 else ""
    which = f" (number {int(position) + 1})" if position else ""
    return f"[[pool]]{which} {name}".strip()


def _unnumbered(key: str) -> str:
    return spelled(".".join(parts(key)))


def _header(section: str) -> str:
    return "[[pool]]" if section == "pool" else f"[{section}]"


def _did_you_mean(wrong: str, known: Mapping[str, str]) -> str:
    """Return the end of a message: the nearest of the known names, or all of them.

    `known` tells for each name how it is written.
    """
    right = {name.lower(): written for name, written in known.items()}
    close = difflib.get_close_matches(wrong.lower(), right, n=1)
    if close:
        return f": did you mean {right[close[0]]}?"
    listed = ", ".join(known.values())
    return f": there are {listed}" if len(listed) <= 400 else ": see docs/configuration.md"
