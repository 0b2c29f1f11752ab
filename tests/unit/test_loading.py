"""`[handlers]` of the settings becomes one mux, or an error that says what to mend."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from orchestrator import loading
from orchestrator.config import HandlersSettings
from orchestrator.errors import ConfigError
from orchestrator.mux import Mux

Write = Callable[[str, str], Path]

SIMPLE = """
    from orchestrator import Mux
    mux = Mux()
    mux.handle("{pattern}", lambda ctx, payload: "{pattern}")
"""


@pytest.fixture(autouse=True)
def unchanged_imports() -> Iterator[None]:
    """Forget the modules that a test imported, and where from."""
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith("user_"):
            del sys.modules[name]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text))
        return path

    return write


def load(directory: Path, *modules: str, **settings: Any) -> Mux:
    return loading.load(HandlersSettings(modules=modules, **settings), str(directory))


def message(directory: Path, *modules: str, **settings: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load(directory, *modules, **settings)
    return str(caught.value)


def test_muxes_of_all_modules_are_served(write: Write, tmp_path: Path) -> None:
    write("user_a.py", SIMPLE.format(pattern="a"))
    write("user_pack/b.py", SIMPLE.format(pattern="b").replace("mux", "tasks"))

    mux = load(tmp_path, "user_a", "user_pack.b:tasks")

    assert mux.patterns() == ["a", "b"]


def test_paths_are_searched_in_their_order_before_all_others(write: Write, tmp_path: Path) -> None:
    write("one/user_a.py", SIMPLE.format(pattern="one"))
    write("two/user_a.py", SIMPLE.format(pattern="two"))

    mux = load(tmp_path, "user_a", path=("two", str(tmp_path / "one")))

    assert mux.patterns() == ["two"]
    assert sys.path[:2] == [str(tmp_path / "two"), str(tmp_path / "one")]


def test_path_is_put_in_front_once(write: Write, tmp_path: Path) -> None:
    write("user_a.py", SIMPLE.format(pattern="a"))

    for _ in range(2):
        load(tmp_path, "user_a")

    assert sys.path.count(str(tmp_path)) == 1


def test_setup_runs_before_the_modules_are_imported(write: Write, tmp_path: Path) -> None:
    write(
        "user_setup.py", "done = []\nclass App:\n    @staticmethod\n    def up(): done.append(1)\n"
    )
    write(
        "user_a.py",
        "import user_setup\nassert user_setup.done\n" + dedent(SIMPLE.format(pattern="a")),
    )

    mux = load(tmp_path, "user_a", setup=("user_setup:App.up",))

    assert mux.patterns() == ["a"]


def test_one_mux_under_two_names_is_mounted_once(write: Write, tmp_path: Path) -> None:
    write("user_a.py", SIMPLE.format(pattern="a"))
    write("user_b.py", "from user_a import mux\n")

    assert load(tmp_path, "user_a", "user_b").patterns() == ["a"]


def test_missing_module_is_told_with_the_folders_that_were_searched(tmp_path: Path) -> None:
    told = message(tmp_path, "user_missing.handlers")

    assert '[handlers] modules "user_missing.handlers": there is no module "user_missing"' in told
    assert str(tmp_path) in told


def test_module_that_lacks_an_import_is_not_called_missing(write: Write, tmp_path: Path) -> None:
    write("user_a.py", "import user_b_missing\n")

    told = message(tmp_path, "user_a")

    assert '[handlers] modules "user_a": its import failed:' in told
    assert 'user_a.py", line 1' in told
    assert "No module named 'user_b_missing'" in told
    assert "importlib" not in told


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def (", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
    ],
)
def test_module_whose_import_raises_is_told_with_the_end_of_its_traceback(
    text: str, reason: str, write: Write, tmp_path: Path
) -> None:
    write("user_a.py", text)

    told = message(tmp_path, "user_a")

    assert 'user_a.py", line 1' in told
    assert told.splitlines()[-1].strip().startswith(reason)


def test_module_without_a_mux_is_told_what_to_write(write: Write, tmp_path: Path) -> None:
    write("user_a.py", "x = 1\n")

    assert "has no `mux`: write `mux = Mux()` in " in message(tmp_path, "user_a")


def test_mux_under_another_name_is_pointed_out(write: Write, tmp_path: Path) -> None:
    write("user_a.py", SIMPLE.format(pattern="a").replace("mux", "tasks"))

    assert 'but a Mux called `tasks`: write "user_a:tasks"' in message(tmp_path, "user_a")


def test_attribute_that_is_no_mux_is_told(write: Write, tmp_path: Path) -> None:
    write("user_a.py", "mux = 5\n")

    assert "`mux` is of type int, not a Mux" in message(tmp_path, "user_a")


def test_attribute_that_is_missing_is_told(write: Write, tmp_path: Path) -> None:
    write("user_a.py", SIMPLE.format(pattern="a"))

    assert "has no `tasks`" in message(tmp_path, "user_a:tasks")


def test_folder_that_does_not_exist_is_told(tmp_path: Path) -> None:
    told = message(tmp_path, "user_a", path=("src",))

    assert f'[handlers] path "src" is {tmp_path / "src"}, which does not exist' in told


def test_setup_that_raises_is_told_and_nothing_is_imported(write: Write, tmp_path: Path) -> None:
    write("user_setup.py", "def up():\n    raise OSError('no settings')\n")

    told = message(tmp_path, "user_missing", setup=("user_setup:up",))

    assert '[handlers] setup "user_setup:up": raised:' in told
    assert "OSError: no settings" in told
    assert "user_missing" not in told


def test_empty_list_of_modules_is_refused(tmp_path: Path) -> None:
    assert "[handlers] modules is empty" in message(tmp_path)


def test_all_faults_are_told_at_once(write: Write, tmp_path: Path) -> None:
    write("user_a.py", SIMPLE.format(pattern="a"))
    write("user_b.py", SIMPLE.format(pattern="a"))

    told = message(tmp_path, "user_missing", "user_a", "user_b")

    assert '"user_missing"' in told
    assert "'a' is registered twice" in told
