"""What mypy and pyright say to users' programs: nothing to right ones, and one error per mistake.

The programs lie in `accepted` and `refused`. A line that a checker must refuse ends in a comment
that names it, `# error: mypy, pyright`; every other line must pass. The checkers see the package
as an installed one, so `py.typed` counts, and the package itself is not judged.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
PACKAGE = HERE.parents[1] / "orchestrator"
PROGRAMS = sorted(path.relative_to(HERE) for path in HERE.glob("*/*.py"))
MARK = re.compile(r"# error: ([a-z, ]+)$")

Lines = dict[Path, dict[int, str]]


class Project:
    """A user's folder: the programs, and an interpreter that has the package installed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("accepted", "refused"):
            shutil.copytree(HERE / name, folder / name)
        venv.create(folder / "env", symlinks=True)
        self.python = folder / "env/bin/python"
        version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        packages = folder / "env/lib" / version / "site-packages"
        (packages / "orchestrator").symlink_to(PACKAGE)
        # What the package requires is where these tests have it.
        (packages / "required.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def run(self, *arguments: str, **environment: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": "", **environment},
            capture_output=True,
            text=True,
        )
        assert done.returncode in (0, 1), done.stdout + done.stderr
        return done.stdout


def mypy(project: Project) -> Iterator[tuple[Path, int, str]]:
    cache = os.environ.get("MYPY_CACHE_DIR", str(project.folder / "cache"))
    # Each folder is a program of its own; both have a module `shared`.
    for name in ("accepted", "refused"):
        output = project.run(
            "mypy", "--strict", "--config-file=", "--output=json", f"--cache-dir={cache}-users",
            f"--python-executable={project.python}", name,
            MYPYPATH=str(project.folder / name),
        )  # fmt: skip
        for line in filter(None, output.splitlines()):
            found: dict[str, Any] = json.loads(line)
            if found["severity"] == "error":
                yield Path(found["file"]), found["line"], found["message"]


def pyright(project: Project) -> Iterator[tuple[Path, int, str]]:
    settings = {
        "include": ["accepted", "refused"],
        "typeCheckingMode": "standard",
        "executionEnvironments": [{"root": "accepted"}, {"root": "refused"}],
    }
    (project.folder / "pyrightconfig.json").write_text(json.dumps(settings))
    # The node of the wheel; one on the PATH may be too old.
    output = project.run(
        "pyright", "--outputjson", f"--pythonpath={project.python}", PYRIGHT_PYTHON_GLOBAL_NODE="0"
    )
    for found in json.loads(output)["generalDiagnostics"]:
        if found["severity"] == "error":
            path = Path(found["file"]).relative_to(project.folder)
            yield path, found["range"]["start"]["line"] + 1, found["message"]


CHECKERS: dict[str, Callable[[Project], Iterator[tuple[Path, int, str]]]] = {
    "mypy": mypy,
    "pyright": pyright,
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(tmp_path_factory.mktemp("users"))


@pytest.fixture(scope="module", params=CHECKERS)
def checker(request: pytest.FixtureRequest) -> str:
    """The name of a checker that runs here: pyright needs a node for this system."""
    name: str = request.param
    started = subprocess.run(
        [sys.executable, "-m", name, "--version"], capture_output=True, text=True
    )
    if started.returncode != 0:
        last = (started.stderr or started.stdout).strip().rpartition("\n")[2]
        pytest.skip(f"{name} cannot run here: {last}")
    return name


@pytest.fixture(scope="module")
def said(project: Project, checker: str) -> Lines:
    """What the checker said, by file and line."""
    lines: Lines = {}
    for path, line, message in CHECKERS[checker](project):
        lines.setdefault(path, {})[line] = message
    return lines


def marked(program: Path, checker: str) -> set[int]:
    """Return the lines of a program that a checker must refuse."""
    return {
        number
        for number, line in enumerate((HERE / program).read_text().splitlines(), 1)
        if (found := MARK.search(line)) and checker in found[1].replace(" ", "").split(",")
    }


@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_checker_refuses_exactly_the_marked_lines(said: Lines, checker: str, program: Path) -> None:
    refused = said.get(program, {})
    to_refuse = marked(program, checker)

    wrongly = {line: message for line, message in refused.items() if line not in to_refuse}
    missed = to_refuse - refused.keys()

    assert (wrongly, missed) == ({}, set())


def test_right_programs_run_too(project: Project) -> None:
    # A signature that only checkers believe would help nobody.
    done = subprocess.run(
        [project.python, "handlers.py"],
        cwd=project.folder / "accepted",
        capture_output=True,
        text=True,
    )

    assert (done.returncode, done.stderr) == (0, "")


def test_every_program_has_its_marks() -> None:
    for program in PROGRAMS:
        marks = (HERE / program).read_text().count("# error: ")
        assert bool(marks) == (program.parts[0] == "refused"), program
