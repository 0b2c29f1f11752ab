"""The documents and the code say the same: links, states, causes, signals, events, commands."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from orchestrator.cli import daemon, failures
from orchestrator.cli.control import main as orchestratorctl
from orchestrator.outcome import BUDGET_OF_CAUSE, Budget, Ending
from orchestrator.processes import identity, messages, supervisor
from orchestrator.task import State

ROOT = Path(__file__).parents[2]
OPERATIONS = ROOT / "docs/operations.md"
CLI = ROOT / "docs/cli.md"
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "examples").rglob("*.md"),
        *(ROOT / "schema").rglob("*.md"),
    ]
)

LEVELS = {"debug", "info", "warning", "error", "exception"}
EVENT = re.compile(r"[a-z]+\.[a-z_]+")


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def section(page: Path, heading: str) -> str:
    """Return what stands below a heading, up to the next one of its level or above."""
    level = heading.split(" ")[0]
    _, found, rest = text_of(page).partition(f"\n{heading}\n")
    assert found, f"{page.name} has no heading {heading!r}"
    return re.split(rf"^#{{1,{len(level)}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def table(content: str, header: str) -> list[list[str]]:
    """Return the rows of the table whose first column has this header, without backticks."""
    lines = iter(content.splitlines())
    for line in lines:
        if line.startswith(f"| {header} |"):
            break
    else:
        raise AssertionError(f"there is no table with the first column {header!r}")
    next(lines)
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().replace("`", "") for cell in line.strip("|").split("|")])
    return rows


def anchors(page: Path) -> set[str]:
    """Return the names of a page's headings as links spell them."""
    prose = re.sub(r"^```.*?^```", "", text_of(page), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", prose, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> Iterator[str]:
    prose = re.sub(r"^```.*?^```", "", text_of(page), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            yield link


def emitted_events() -> set[str]:
    """Return the names of all log events in the package."""
    events: set[str] = set()
    for path in (ROOT / "orchestrator").rglob("*.py"):
        for node in ast.walk(ast.parse(text_of(path))):
            if not isinstance(node, ast.Call):
                continue
            called = set(_names(node.func))
            if called & LEVELS:
                events.update(filter(EVENT.fullmatch, _strings(node.args[:1])))
            elif path.name == "logs.py" and called & {"write", "_line"}:
                events.update(filter(EVENT.fullmatch, _strings(node.args[1:2])))
    return events


def _names(node: ast.AST) -> Iterator[str]:
    # (log.debug if ... else log.warning)("...")
    if isinstance(node, ast.IfExp):
        yield from _names(node.body)
        yield from _names(node.orelse)
    elif isinstance(node, ast.Attribute):
        yield node.attr


def _strings(nodes: list[ast.expr]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.IfExp):
            yield from _strings([node.body, node.orelse])
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def commands(group: click.Group, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


def documented_commands() -> dict[str, str]:
    """Return what docs/cli.md says of each command, by its name."""
    parts = re.split(r"^### ", section(CLI, "## Commands"), flags=re.MULTILINE)[1:]
    named = {}
    for part in parts:
        title = part.splitlines()[0].strip("`")
        named[re.split(r" (?=[A-Z\[])", title)[0]] = part
    return named


def codes_in(docstring: str | None) -> set[int]:
    return {int(code) for code in re.findall(r"^ *(\d+)  \w", docstring or "", re.MULTILINE)}


def test_the_readme_is_short() -> None:
    assert len(text_of(ROOT / "README.md").splitlines()) < 200


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    assert list(broken_links(page)) == []


def test_every_decision_is_numbered_once_and_without_a_gap() -> None:
    numbers = sorted(int(path.name[:4]) for path in (ROOT / "docs/decisions").glob("*.md"))

    assert numbers == list(range(len(numbers)))  # 0000 is the template


def test_operations_lists_the_states_of_a_task() -> None:
    rows = table(section(OPERATIONS, "## States of a task"), "state")

    assert [row[0] for row in rows] == [str(state) for state in State]


def test_operations_lists_the_outcomes_of_an_attempt() -> None:
    content = section(OPERATIONS, "### Outcomes of an attempt")

    assert set(re.findall(r"`(\w+)`", content)) == {str(ending) for ending in Ending}


def test_operations_charges_every_cause_to_the_budget_that_the_code_charges() -> None:
    rows = table(section(OPERATIONS, "## Causes"), "cause")

    assert {row[0]: row[2] for row in rows} == {
        str(cause): str(budget) for cause, budget in BUDGET_OF_CAUSE.items()
    }


def test_operations_lists_the_budgets() -> None:
    rows = table(section(OPERATIONS, "## Causes"), "budget")

    assert {row[0] for row in rows} == {str(budget) for budget in Budget}


def test_operations_lists_the_exit_codes_of_the_daemon() -> None:
    rows = table(section(OPERATIONS, "## Exit codes"), "code")

    assert {int(row[0]) for row in rows} == codes_in(daemon.__doc__)
    assert {
        messages.EXIT_TEMPORARY,
        messages.EXIT_CONFIG,
        daemon.EXIT_CONFIGURATION,
    } <= codes_in(daemon.__doc__)


def test_operations_lists_the_signals_that_the_supervisor_catches() -> None:
    rows = table(section(OPERATIONS, "## Signals"), "signal")
    caught = {signum.name.removeprefix("SIG") for signum in identity.PASSED_SIGNALS}

    assert {row[0] for row in rows} - {"KILL"} == caught


def test_operations_calls_exactly_the_signals_without_a_duty_unsupported() -> None:
    rows = table(section(OPERATIONS, "## Signals"), "signal")
    unsupported = {row[0] for row in rows if row[1].startswith("not supported yet")}
    source = inspect.getsource(supervisor.Supervisor._on_signals)
    handled = set(re.findall(r"signal\.SIG([A-Z0-9]+)", source))

    assert unsupported == {row[0] for row in rows} - handled - {"KILL"}


def test_operations_lists_every_log_event() -> None:
    rows = table(section(OPERATIONS, "## Log events"), "event")
    listed = [row[0] for row in rows]

    assert listed == sorted(emitted_events())


def test_cli_lists_every_command() -> None:
    assert set(documented_commands()) == {name for name, _ in commands(orchestratorctl)}


OPTION = re.compile(r"(?<![-\w])--[a-z][a-z-]*")


@pytest.mark.parametrize(("name", "command"), list(commands(orchestratorctl)))
def test_cli_names_every_option_of_a_command(name: str, command: click.Command) -> None:
    documented = set(OPTION.findall(documented_commands()[name]))
    options = {
        option
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for option in parameter.opts
        if option.startswith("--")
    }

    assert options - {"--output"} <= documented


def test_cli_names_no_option_that_does_not_exist() -> None:
    named = set(OPTION.findall(text_of(CLI)))
    parameters = [
        *orchestratorctl.params,
        *(p for _, c in commands(orchestratorctl) for p in c.params),
    ]

    assert named - {"--help"} <= {option for parameter in parameters for option in parameter.opts}


def test_cli_lists_the_exit_codes_of_orchestratorctl() -> None:
    rows = table(section(CLI, "## Exit codes"), "code")

    assert {int(row[0]) for row in rows} == codes_in(failures.__doc__)
