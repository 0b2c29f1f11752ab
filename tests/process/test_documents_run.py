"""The code in the documents runs: Python, SQL and commands of the shell, as readers have them.

Per page and in its order: Python in one namespace, in a process of its own; SQL in one database;
commands in one shell. QUICKSTART.md has a test of its own, which compares what is printed, and so
has a page that names one: "The Python on this page is run by `tests/...`".

A file named in the first line of a block is written, so that later blocks can import it. A page
with a file `orchestrator.toml` has a node that runs the handlers which that names.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator.db.connection import Session
from tests.blocks import PAGES, ROOT, run_blocks
from tests.checkout import copy_checkout, environment, lend_environment
from tests.node import free_address, running
from tests.session import Reader, Shell, Typed, typed
from tests.sql import rows
from tests.support import eventually

QUICKSTART = ROOT / "QUICKSTART.md"
SERVER = re.compile(r"postgres(?:ql)?://[\w.:@/-]*\w")
OWN_TEST = re.compile(r"(?:Python|code) on this page is run\s+by\s+`(tests/[\w/]+\.py)`")
# What a print is said to print.
PRINTED = re.compile(r"^ *print\(.*\) +# (.+)$", re.MULTILINE)
# Runs blocks from standard input, as [place, line, code], and keeps their lines for tracebacks.
RUN = """
import ast, asyncio, inspect, json, sys, types
page = types.ModuleType("page")
sys.modules["page"] = page  # dataclasses look up their module by name
with asyncio.Runner() as runner:
    for place, line, code in json.load(sys.stdin):
        compiled = compile("\\n" * line + code, place, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        done = eval(compiled, page.__dict__)
        if inspect.iscoroutine(done):
            async def run(done=done):
                await done
            runner.run(run())
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    checkout = copy_checkout(tmp_path / "checkout")
    lend_environment(checkout)
    return checkout


def pages(*languages: str) -> list[Path]:
    return [page for page in PAGES if page != QUICKSTART and run_blocks(page, *languages)]


def python_pages() -> list[Path]:
    """Return those whose Python has no test of its own."""
    return [page for page in pages("python") if not OWN_TEST.search(page.read_text())]


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [p for p in PAGES if OWN_TEST.search(p.read_text())], ids=named)
def test_page_that_names_a_test_of_its_own_is_read_by_it(page: Path) -> None:
    found = OWN_TEST.search(page.read_text())

    assert found
    assert page.name in (ROOT / found[1]).read_text()


@pytest.mark.parametrize("page", python_pages(), ids=named)
def test_python_of_a_page_runs_and_prints_what_it_says(
    page: Path, dsn: str, tmp_path: Path, state: Path, checkout: Path
) -> None:
    folder = tmp_path / "reader"
    folder.mkdir()
    files = write_files(page, folder)
    blocks = run_blocks(page, "python")
    code = [(str(block), block.line, SERVER.sub(dsn, block.content)) for block in blocks]
    environ = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
        "DATABASE_URL": dsn,
    }

    with node_of(files.get("orchestrator.toml"), dsn, checkout, state):
        done = subprocess.run(
            [sys.executable, "-c", RUN],
            input=json.dumps(code),
            capture_output=True,
            text=True,
            cwd=folder,
            env=environ,
            timeout=60,
        )

    assert done.returncode == 0, done.stderr
    printed = [line for block in blocks for line in PRINTED.findall(block.content)]
    assert done.stdout.splitlines() == printed


def write_files(page: Path, folder: Path) -> dict[str, Path]:
    """Write the files that a page names; return their paths by their names."""
    written = {}
    for block in run_blocks(page):
        if block.file is not None:
            path = folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.content)
            written[block.file] = path
    return written


@contextmanager
def node_of(settings: Path | None, dsn: str, checkout: Path, state: Path) -> Iterator[None]:
    """Run the daemon on a page's own settings, as its reader would; of a page without, none."""
    if settings is None:
        yield
        return
    settings.write_text(SERVER.sub(dsn, settings.read_text()))
    path = os.pathsep.join([str(checkout / "bin"), os.environ["PATH"]])
    shell = Shell(settings.parent, environment(state, PATH=path))
    try:
        shell.run("orchestratord 2> log &")
        Reader(shell).type(Typed("orchestratorctl health", ()))
        yield
    finally:
        shell.close()


# -- SQL


@pytest.mark.parametrize("page", pages("sql"), ids=named)
def test_sql_of_a_page_runs(page: Path, session: Session) -> None:
    for block in run_blocks(page, "sql"):
        rows(session, block.content.replace("%", "%%"))


# -- the shell


@pytest.mark.parametrize(
    "page", [p for p in pages("console", "sh") if p.parent.name == "docs"], ids=named
)
def test_commands_of_a_page_do_what_it_says(
    page: Path, dsn: str, tmp_path: Path, state: Path, checkout: Path
) -> None:
    blocks = run_blocks(page, "console", "sh")
    if any("curl " in block.content for block in blocks) and shutil.which("curl") is None:
        pytest.skip("there is no curl here, which the page uses")
    for name, content in FILES.items():
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text(content)
    address = free_address()
    with running(dsn, tmp_path / "node", settings={"web.bind": address}) as node:
        config = str(node.directory / "orchestrator.toml")
        path = os.pathsep.join([str(checkout / "bin"), os.environ["PATH"]])
        shell = Shell(checkout, environment(state, ORCHESTRATOR_CONFIG=config, PATH=path))
        reader = Reader(shell, {"localhost:9090": address, "/srv/app": f"{checkout}/app"})
        try:
            for block in blocks:
                for command in typed(block):
                    reader.type(command)
        finally:
            shell.close()


# What the pages speak of and do not show.
FILES = {
    "bad.toml": '[node]\nheartbeat_intervall = "2s"\nworker_timeout = "5s"\nkill_grace = "1s"\n',
    "app/orchestrator.toml": "",
    "app/conf.d/database.toml": '[database]\nurl = "postgresql://app:secret@db/app"\n',
}


@pytest.fixture
def example_shell(checkout: Path, state: Path) -> Iterator[Shell]:
    shell = Shell(checkout, environment(state, SMTP_PORT=port_of(free_address())))
    yield shell
    shell.close()


def port_of(address: str) -> str:
    return address.rpartition(":")[2]


def typed_but_the_last(name: str, shell: Shell, tmp_path: Path) -> str:
    """Type what the README of an example says; return the last command."""
    (block,) = run_blocks(ROOT / "examples" / name / "README.md", "sh")
    *first, last = typed(block)
    reader = Reader(shell, {"/tmp/": f"{tmp_path}/"})
    for command in first:
        reader.type(command)
    return last.command.replace("/tmp/", f"{tmp_path}/")


@pytest.mark.parametrize(
    "name",
    [
        "email",
        "simulation",
        "thumbnails",
        # 700 tasks; `.ci/run` has them run by bin/demo as well.
        pytest.param("stdlib_report", marks=pytest.mark.slow),
    ],
)
def test_commands_of_an_example_run_it(name: str, example_shell: Shell, tmp_path: Path) -> None:
    last = typed_but_the_last(name, example_shell, tmp_path)

    printed = example_shell.run(last)

    assert EXPECTED[name] in printed.output
    assert printed.code == (1 if name == "thumbnails" else 0)


EXPECTED = {
    "email": "sent as <",
    # One of the samples is no picture, on purpose.
    "thumbnails": "{'succeeded': 12, 'dead': 1}",
    "simulation": "closed form",
    "stdlib_report": "longest function",
}


def test_commands_of_the_web_application_serve_its_page(
    example_shell: Shell, tmp_path: Path
) -> None:
    last = typed_but_the_last("webapp", example_shell, tmp_path)
    address = free_address()

    example_shell.run(f"{last} {port_of(address)} &")

    def page() -> str:
        try:
            with urllib.request.urlopen(f"http://{address}/", timeout=5) as answer:
                return str(answer.read().decode())
        except OSError:
            return ""

    assert "<h1>Orders</h1>" in eventually(page)
