"""The settings as text: a file that could have been read, with origin and unit of each value.

What the values are is `config`'s; how a rule writes its value, and what is secret in it, is
`config_rules`'.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import msgspec

from orchestrator import __version__, config
from orchestrator.config_rules import Rule

# Origins stand in a column, unless a value is wider than this.
_WIDEST_COLUMN = 44


def write(settings: config.Settings) -> str:
    """Write all settings as TOML; read by `config.load`, it gives the same values.

    The comment of a line tells the unit and the origin. Keys without a value are comments.
    Passwords are replaced by "***", and `[handlers] path` is made absolute, since a file in
    another folder would give it another meaning.
    """
    lines = [
        f"# The settings in force, as orchestratord {__version__} reads them, without passwords.",
        *(f"# Read: {_one_line(path)}" for path in settings.files or ["no file"]),
        f"# Relative paths start at {_one_line(settings.base_directory)}",
    ]
    for name in config.SECTIONS:
        if name == "pool":
            for n, pool in enumerate(settings.pools):
                lines += ["", "[[pool]]", *_section(settings, f"pool.{n}", pool)]
        else:
            lines += ["", f"[{name}]", *_section(settings, name, getattr(settings, name))]
    return "\n".join(lines) + "\n"


def _section(settings: config.Settings, prefix: str, section: Any) -> Iterator[str]:
    rows = []
    for name, rule in config.rules(config.SECTIONS[prefix.partition(".")[0]]).items():
        about = [rule.unit] if rule.unit else []
        about.append(_one_line(settings.origin(f"{prefix}.{name}")))
        rows.append((_assignment(settings, section, name, rule), "; ".join(about)))
    width = max(len(left) for left, _ in rows if len(left) <= _WIDEST_COLUMN)
    for left, right in rows:
        yield f"{left:<{width}}  # {right}"


def _assignment(settings: config.Settings, section: Any, name: str, rule: Rule) -> str:
    value = rule.gather(section, name)
    if name == "concurrency" and section.mode == "process":
        # A file must not say it.
        return f"# {name} is 1"
    if value is msgspec.UNSET or rule.written(value) is None:
        return f"# {name} is not set"
    if isinstance(section, config.HandlersSettings) and name == "path":
        base = settings.base_directory
        value = [os.path.normpath(os.path.join(base, path)) for path in value]
    return f"{name} = {_toml(rule.written(value))}"


def _toml(value: object) -> str:
    if isinstance(value, dict):
        pairs = (f"{_toml(key)} = {_toml(item)}" for key, item in value.items())
        return f"{{ {', '.join(pairs)} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    # What is left are texts, numbers and truth; TOML writes them as JSON does, but for one
    # character that it wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _one_line(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)
