"""The files of the settings: which are read, in which order, and on which line each key stands.

    the main file  <  conf.d/*.toml beside it, by name

What the keys mean, and which layer outranks which, is `config_reader`'s and `config`'s.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import ConfigError

FOLDER = "conf.d"

_HEADER = re.compile(r"\s*(\[\[?)\s*([A-Za-z0-9_-]+)\s*\]\]?\s*(#.*)?$")
_TABLE = re.compile(r"\s*\[\s*([A-Za-z0-9_-]+)\s*\.\s*([A-Za-z0-9_-]+)\s*\]\s*(#.*)?$")
_KEY = re.compile(r"\s*([A-Za-z0-9_-]+)\s*[=.]")


@dataclass(frozen=True, kw_only=True)
class Document:
    """One file that was read: its content, and the line of each of its keys.

    Keys of `lines` are "section", "section.key", "pool.<position in this file>.key".
    """

    path: str
    content: dict[str, Any]
    lines: dict[str, int]


def find(path: str | None, environ: Mapping[str, str]) -> Path | None:
    """Return the main file to read; None when there is none.

    `path` (flag `-c`), else $ORCHESTRATOR_CONFIG, are taken as they are, existing or not; else
    the first that exists of ./orchestrator.toml, ./conf/orchestrator.toml and
    /etc/orchestrator/orchestrator.toml.
    """
    named = path or environ.get("ORCHESTRATOR_CONFIG")
    if named:
        return Path(named)
    for candidate in (
        "orchestrator.toml",
        "conf/orchestrator.toml",
        "/etc/orchestrator/orchestrator.toml",
    ):
        if os.path.isfile(candidate):
            return Path(candidate)
    return None


def beside(file: Path) -> list[Path]:
    """Return the files of the folder conf.d beside the main file, in the order of their names.

    Hidden files, and what does not end in ".toml", are left to editors and package managers.

    Raises:
        ConfigError: there is a conf.d that cannot be listed.
    """
    # Where a link to the main file lies counts, not what it points to.
    folder = file.parent / FOLDER
    if not os.path.lexists(folder):
        return []
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise ConfigError(
            f"{folder}: cannot be listed ({error.strerror}): it must be a folder that user "
            f"{os.geteuid()} may read, or not be there"
        ) from error
    return [
        folder / name
        for name in sorted(names)
        if name.endswith(".toml") and not name.startswith(".")
    ]


def read(file: Path, *, said_by: str) -> Document:
    """Read one TOML file.

    Raises:
        ConfigError: it cannot be read, or is no TOML.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"{file}: no such file (named by {said_by}): correct the path, "
            "or leave it out to have the usual places searched"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{file}: is not UTF-8 text (byte {error.start}): save it in that encoding"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"{file}: cannot be read ({error.strerror}): "
            f"it must be a file that user {os.geteuid()} may read"
        ) from error
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: is not TOML: {error}: correct the line") from None
    return Document(path=str(file), content=content, lines=_lines_of_keys(text))


def base_directory(source: str) -> str:
    """Return the folder that relative paths start from.

    That of the main file; its parent if the folder is called "conf", so that the usual layout
    (conf/orchestrator.toml beside the code) needs no ".."; the current one without a file.
    """
    if not source:
        return os.getcwd()
    # Not resolved: where a link to the file lies counts, not what it points to.
    folder = os.path.dirname(os.path.abspath(source))
    return os.path.dirname(folder) if os.path.basename(folder) == "conf" else folder


def _lines_of_keys(text: str) -> dict[str, int]:
    """Return the line of each key, for messages; tomllib does not tell."""
    lines: dict[str, int] = {}
    prefix, n_pools = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            prefix = header[2]
            lines.setdefault(prefix, number)
            if header[1] == "[[" and prefix == "pool":
                prefix, n_pools = f"{prefix}.{n_pools}", n_pools + 1
                lines.setdefault(prefix, number)
            prefix += "."
        elif table := _TABLE.match(line):
            # [pool.queues] is a key of the pool above it, written as a table.
            above = f"pool.{max(0, n_pools - 1)}" if table[1] == "pool" else table[1]
            lines.setdefault(f"{above}.{table[2]}", number)
            prefix = f"{above}.{table[2]}."
        elif key := _KEY.match(line):
            lines.setdefault(prefix + key[1], number)
    return lines
