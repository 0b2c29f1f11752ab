"""Which interpreters `bin/test` finds besides its own, and what happens to one that is unfit."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(__file__).parents[2] / "bin"
OWN = f"3.{sys.version_info[1]}"
OTHERS = [f"3.{minor}" for minor in (11, 12, 13, 14) if f"3.{minor}" != OWN]


def interpreter(path: Path, says: str, *, code: int = 0) -> str:
    """Make a program that answers every question of an interpreter with the same words."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{says}'\nexit {code}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder with the programs that bootstrap.sh needs, and no interpreter of the system."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in ("sh", "basename", "dirname", "flock", "ls", "mkdir", "readlink", "rm", "sort"):
        if program := shutil.which(name):
            (folder / name).symlink_to(program)
    return folder


def shell(program: str, tools: Path, *folders: Path, **environment: str) -> str:
    """Run functions of bootstrap.sh as bin/test does."""
    done = subprocess.run(
        ["sh", "-c", f'set -eu; . "$1"; python=$2; {program}', BIN / "test",
         BIN / "bootstrap.sh", sys.executable],
        env={"PATH": ":".join(map(str, [*folders, tools])), "HOME": "/nonexistent", **environment},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def found(tools: Path, *folders: Path, **environment: str) -> list[str]:
    return shell("other_interpreters", tools, *folders, **environment).splitlines()


def test_one_interpreter_is_found_for_each_other_version(tools: Path, tmp_path: Path) -> None:
    paths = {
        version: interpreter(tmp_path / f"python{version}", f"cpython {version}")
        for version in [OWN, *OTHERS]
    }

    assert found(tools, tmp_path) == [paths[version] for version in OTHERS]


def test_shim_that_fails_does_not_hide_the_interpreter_behind_it(
    tools: Path, tmp_path: Path
) -> None:
    version = OTHERS[0]
    interpreter(tmp_path / "shims" / f"python{version}", "not switched on", code=127)
    behind = interpreter(tmp_path / "bin" / f"python{version}", f"cpython {version}")

    assert found(tools, tmp_path / "shims", tmp_path / "bin") == [behind]


def test_newest_of_the_versions_of_pyenv_is_taken(tools: Path, tmp_path: Path) -> None:
    version = OTHERS[-1]
    paths = [
        interpreter(tmp_path / f"versions/{version}.{n}/bin/python", f"cpython {version}")
        for n in (2, 10, 9)
    ]

    assert found(tools, PYENV_ROOT=str(tmp_path)) == [paths[1]]


def test_other_implementations_are_left_alone(tools: Path, tmp_path: Path) -> None:
    interpreter(tmp_path / f"python{OTHERS[0]}", f"pypy {OTHERS[0]}")

    assert found(tools, tmp_path) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_pyenv_of_another_user_is_passed_over(tools: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pyenv"
    interpreter(folder / f"versions/{OTHERS[0]}.1/bin/python", f"cpython {OTHERS[0]}")
    folder.chmod(0)

    assert found(tools, PYENV_ROOT=str(folder)) == []


def test_interpreter_that_cannot_make_environments_says_why(tools: Path, tmp_path: Path) -> None:
    unfit = interpreter(tmp_path / "python", "3.14", code=1)

    said = shell(
        f"kind=unit; sum=1; base={shlex.quote(unfit)}; venv={shlex.quote(str(tmp_path / 'env'))}; "
        'reason=$(_make_once _fill_other) || printf "%s" "$reason"',
        tools,
    )

    assert said == "it has no ensurepip, which virtual environments need"
