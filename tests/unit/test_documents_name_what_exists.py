"""What the documents name exists, on every page: commands, settings, errors, metrics, events.

And the other way round where `test_documents.py` and its neighbours do not hold it yet: errors,
options of handlers, attributes of the context, tables, exit codes, the names of the package.
"""

from __future__ import annotations

import builtins
import importlib
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import orchestrator
from orchestrator import Context, Mux, config, errors
from orchestrator.cli import failures
from orchestrator.cli.control import main as orchestratorctl
from orchestrator.cli.daemon import main as orchestratord
from orchestrator.db.connection import _OURS
from orchestrator.metrics import METRICS
from tests.blocks import PAGES, ROOT
from tests.unit.test_documents import (
    CLI,
    codes_in,
    emitted_events,
    section,
    table,
    text_of,
)

ERRORS = ROOT / "docs/errors.md"
HANDLERS = ROOT / "docs/handlers.md"
ARCHITECTURE = ROOT / "docs/architecture.md"
PROGRAMS = {"orchestratorctl": orchestratorctl, "orchestratord": orchestratord}

FENCE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def spans(page: Path) -> list[str]:
    """Return the `code spans` of a page, those of its blocks aside."""
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", text_of(page)))


# -- commands


def invocations(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield program and words of every command line on a page, in spans and in blocks."""
    text = text_of(page)
    lines = [*spans(page), *re.findall(r"^ {4,}(?:\S+=\S+ )?(\S.*)$", text, re.MULTILINE)]
    for fence in FENCE.findall(text):
        lines += fence.splitlines()
    for line in lines:
        for program, rest in re.findall(r"\b(orchestratorctl|orchestratord) ([^`|;&>#]*)", line):
            # What stands in brackets is a placeholder for all that follows.
            shown = rest.partition("[")[0]
            try:
                words = shlex.split(shown)
            except ValueError:
                words = shown.split()
            yield program, words


def unknown(program: str, words: list[str]) -> list[str]:
    """Return what of a command line does not exist. Arguments are not looked at."""
    command: click.Command = PROGRAMS[program]
    options = set(option_names(command))
    missing = []
    for i, word in enumerate(words):
        if isinstance(command, click.Group) and re.fullmatch(r"[a-z]+", word):
            found = command.get_command(click.Context(command), word)
            if found is None:
                # The value of an option before it, as in `-o json`.
                if i and words[i - 1].startswith("-"):
                    continue
                return [*missing, word]
            command = found
            options |= set(option_names(command))
        elif re.fullmatch(r"--?[a-z][a-z-]*", word) and word not in options:
            missing.append(word)
    return missing


def option_names(command: click.Command) -> list[str]:
    named = [name for one in command.params if isinstance(one, click.Option) for name in one.opts]
    return [*named, "--help", "-h"]


@each_page
def test_commands_and_options_exist(page: Path) -> None:
    missing = {f"{p} {' '.join(w)}": unknown(p, w) for p, w in invocations(page)}

    assert {line: words for line, words in missing.items() if words} == {}


def test_commands_are_found_in_spans_and_in_blocks() -> None:
    found = {page.name: len(list(invocations(page))) for page in PAGES}

    assert found["QUICKSTART.md"] >= 10
    assert found["operations.md"] >= 5
    assert unknown("orchestratorctl", ["task", "list", "--nope"]) == ["--nope"]
    assert unknown("orchestratorctl", ["-o", "json", "nope", "list"]) == ["nope"]


def test_options_of_the_daemon_are_documented() -> None:
    documents = "".join(text_of(page) for page in PAGES if page.parent.name == "docs")

    named = {option for option in option_names(orchestratord) if option.startswith("--")}

    # `--config` and `--version` are those of orchestratorctl too.
    assert {option for option in named if option not in documents} == set()


def test_exit_codes_of_orchestratorctl_are_those_of_the_code() -> None:
    codes = {
        code for name, code in vars(failures).items() if re.match("EXIT_", name)
    } | {0}  # fmt: skip

    assert codes == codes_in(failures.__doc__)
    assert {int(row[0]) for row in table(section(CLI, "## Exit codes"), "code")} == codes


# -- settings


@each_page
def test_settings_exist(page: Path) -> None:
    known = {(s, key) for s, struct in config.SECTIONS.items() for key in struct.__struct_fields__}
    named = re.findall(r"`\[+(\w+)\]+(?: (\w+))?", text_of(page))

    assert {(s, key) for s, key in named if s not in config.SECTIONS} == set()
    assert {(s, key) for s, key in named if key} - known == set()


@each_page
def test_environment_variables_exist(page: Path) -> None:
    named = set(re.findall(r"\bORCHESTRATOR__([A-Z]+)__([A-Z_]+)\b", text_of(page)))
    sections = {s.upper(): struct.__struct_fields__ for s, struct in config.SECTIONS.items()}

    # The key of a pool follows its name: ORCHESTRATOR__POOL__CPU_LARGE__PROCESSES.
    wrong = {
        (s, key)
        for s, key in named
        if s not in sections or not any(key.lower().endswith(field) for field in sections[s])
    }

    assert wrong == set()


# -- errors


CLASSES = {
    name: value
    for name, value in vars(errors).items()
    if inspect.isclass(value) and value.__module__ == errors.__name__
}


def imported_as(error: type[BaseException]) -> str:
    """Return the name under which a user imports a class."""
    if error.__module__ == "builtins" or error.__name__ in orchestrator.__all__:
        return error.__name__
    return f"{error.__module__}.{error.__name__}"


def documented_errors() -> dict[str, str]:
    """Return what each error is, by its name, from all tables of the page."""
    rows = re.findall(r"^\| `([\w.]+)` \| ([^|]+) \|.*\|.*\|$", text_of(ERRORS), re.MULTILINE)
    return {name: bases.replace("`", "") for name, bases in rows if not name.startswith("OR0")}


def test_every_error_class_is_documented_with_what_it_is() -> None:
    assert documented_errors() == {
        imported_as(error): ", ".join(imported_as(base) for base in error.__bases__)
        for error in CLASSES.values()
    }


def test_every_sql_state_is_documented_with_its_class() -> None:
    rows = table(text_of(ERRORS), "SQLSTATE")

    assert {row[0]: row[1] for row in rows} == {
        state: imported_as(error) for state, error in _OURS.items()
    }
    raised = {
        state
        for path in (ROOT / "schema").rglob("*.sql")
        for state in re.findall(r"errcode = '(OR\d+)'", path.read_text())
    }
    assert raised == set(_OURS)


@each_page
def test_error_classes_exist(page: Path) -> None:
    named = {
        name
        for span in spans(page)
        for name in re.findall(
            r"(?<![.\w])([A-Z][a-zA-Z]+(?:Error|Unavailable|NotFound|Failed))\b", span
        )
    }

    assert {name for name in named if name not in CLASSES and not hasattr(builtins, name)} == set()


# -- what handlers and programs import


def test_every_name_of_the_package_is_in_a_document() -> None:
    documents = "".join(text_of(page) for page in PAGES)

    missing = {
        name for name in orchestrator.__all__ if not re.search(rf"\b{name}\b", documents)
    } - {"__version__"}

    assert missing == set()


def test_handlers_page_lists_the_options_of_a_handler() -> None:
    rows = table(section(HANDLERS, "## Options of a handler"), "option")
    parameters = inspect.signature(Mux.handler).parameters

    assert {row[0] for row in rows} == set(parameters) - {"self", "type"}


def test_handlers_page_lists_what_a_context_has() -> None:
    rows = re.findall(r"^\| (`.+?) \|", section(HANDLERS, "## The context"), re.MULTILINE)
    listed = {name for row in rows for name in re.findall(r"`(\w+)(?:\(.*?\))?`", row)}
    made = Context(task_id=1, type="t")
    has = {name for name in dir(made) if not name.startswith("_")}

    assert listed == has


def test_dotted_names_of_the_package_can_be_imported() -> None:
    named = {
        name
        for page in PAGES
        for span in spans(page)
        for name in re.findall(r"^(orchestrator(?:\.\w+)+)", span)
        if not is_file(span)
    }

    assert {name for name in named - planned() if not exists(name)} == set()


def planned() -> set[str]:
    """Return what the README names as not there yet."""
    content = section(ROOT / "README.md", "## What is here, and what is not yet")
    return set(re.findall(r"`(orchestrator\.\w+)`", content))


def exists(name: str) -> bool:
    """Tell whether a module, a thing of a module, or a table of the schema has this name."""
    module, _, last = name.rpartition(".")
    try:
        importlib.import_module(name)
    except ImportError:
        try:
            return hasattr(importlib.import_module(module), last) or last in sql_names()
        except ModuleNotFoundError as error:
            # It is there, and a library that it is for is not.
            return not str(error.name).startswith("orchestrator")
        except ImportError:
            return False
    return True


# -- the schema


def sql_names(kind: str = "table|view|function") -> set[str]:
    """Return the names of what the schema's files make."""
    made = re.compile(rf"^create (?:unlogged )?(?:or replace )?(?:{kind}) (\w+)", re.MULTILINE)
    return {
        name for path in (ROOT / "schema").rglob("*.sql") for name in made.findall(text_of(path))
    }


def test_architecture_lists_the_tables() -> None:
    rows = re.findall(
        r"^\| ((?:views )?`\w.*?) \| `\d\d_", section(ARCHITECTURE, "## Tables and moves"), re.M
    )

    listed = {name for row in rows for name in re.findall(r"`(\w+)`", row)}

    assert listed == sql_names("table|view")


# -- metrics, events, files


@each_page
def test_metrics_exist(page: Path) -> None:
    known = {metric.name for metric in METRICS}
    family = re.compile(r"\b(?:orchestrator_[a-z]+_[a-z_]+|tasks_[a-z_]+_total|leader_status)\b")
    named = {name for span in spans(page) for name in family.findall(span)}

    assert named - known - fixtures() == set()


def fixtures() -> set[str]:
    """Return the names of what the package gives to pytest, which begin like metrics."""
    made = re.compile(r"^def (orchestrator_\w+)\(", re.MULTILINE)
    package = (ROOT / "orchestrator").rglob("*.py")
    return {name for path in package for name in made.findall(text_of(path))}


@each_page
def test_log_events_exist(page: Path) -> None:
    known = emitted_events()
    nouns = {event.partition(".")[0] for event in known}
    candidates = re.compile(r"([a-z]+)\.[a-z_]+")

    named = {
        span
        for span in spans(page)
        if (found := candidates.fullmatch(span)) and found[1] in nouns and not is_file(span)
    }

    assert named - known - NO_EVENTS == set()


# What looks like an event and is an attribute or a placeholder.
NO_EVENTS: set[str] = set()


@each_page
def test_files_exist(page: Path) -> None:
    named = {
        span for span in spans(page) if re.fullmatch(r"[\w./*-]+/[\w.*-]+\.(py|sql|toml|md)", span)
    }

    missing = {name for name in named if not is_file(name)} - READERS

    assert {name for name in missing if not name.startswith("myapp/")} == set()


# Files of the reader's, besides those of `myapp`.
READERS = {
    "schema/migrations/NNNN_what_it_does.sql",
    "conf.d/*.toml",
    "./orchestrator.toml",
    "./conf/orchestrator.toml",
    "/etc/orchestrator/orchestrator.toml",
}


def is_file(name: str) -> bool:
    places = (
        ROOT, ROOT / "orchestrator", ROOT / "docs", ROOT / "orchestrator/store", ROOT / "conf"
    )  # fmt: skip
    return any(list(place.glob(name.removeprefix("./"))) for place in places if name[0] != "/")
