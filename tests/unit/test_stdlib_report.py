"""The example: what is measured in a source file, which files are taken, how they are shown."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from examples.stdlib_report import handlers, report
from examples.stdlib_report.tasks import Measure, Source
from orchestrator import Context, Dead, State, Task


def measured(path: Path, text: str) -> Measure:
    path.write_text(dedent(text))
    ctx: Context[Any] = Context(task_id=1, type="stdlib:measure")
    return handlers.measure_source(ctx, Source(module="m", path=str(path)))


def task(number: int, state: State, result: Any) -> Task[Any]:
    return Task(id=number, type="t", queue="q", state=state, priority=0, result=result)


def measure_of(module: str, complexity: int) -> dict[str, Any]:
    return {
        "module": module,
        "size_bytes": 2048,
        "lines": 10,
        "functions": 1,
        "branches": complexity - 1,
        "complexity": complexity,
        "longest_function": "f:1",
        "longest_function_lines": 5,
    }


@pytest.mark.parametrize(
    ("text", "branches"),
    [
        ("x = 1", 0),
        ("if a: pass\nelif b: pass\nelse: pass", 2),
        ("for a in b: pass\nwhile a: pass", 2),
        ("try: pass\nexcept A: pass\nexcept B: pass", 2),
        ("a and b and c or d", 3),
        ("x = a if b else c\nassert x", 2),
        ("[a for a in b if a if c]", 3),
        ("match a:\n  case 1: pass\n  case _: pass", 2),
    ],
)
def test_decisions_are_counted(text: str, branches: int, tmp_path: Path) -> None:
    found = measured(tmp_path / "m.py", text)

    assert (found.branches, found.complexity) == (branches, branches + 1)


def test_functions_are_counted_and_the_longest_is_named_with_its_class(tmp_path: Path) -> None:
    found = measured(
        tmp_path / "m.py",
        """\
        def short(): pass

        class A:
            def method(self):
                async def inner():
                    pass
                return inner
        """,
    )

    assert (found.functions, found.lines) == (3, 7)
    assert (found.longest_function, found.longest_function_lines) == ("A.method:4", 4)


def test_file_without_functions_has_no_longest(tmp_path: Path) -> None:
    assert measured(tmp_path / "m.py", "").longest_function is None


def test_file_that_is_no_python_is_dead_at_once(tmp_path: Path) -> None:
    with pytest.raises(Dead, match="cannot be parsed"):
        measured(tmp_path / "m.py", "def (")


def test_tests_and_installed_packages_are_left_out_and_large_files_come_first(
    tmp_path: Path,
) -> None:
    for name in ("a.py", "p/__init__.py", "p/b.py", "test/c.py", "p/tests/d.py", "e.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "f.py").write_text("x")
    (tmp_path / "p" / "b.py").write_text("larger")

    assert [source.module for source in report.sources(tmp_path)] == ["p.b", "a", "p"]


def test_standard_library_is_found() -> None:
    modules = {source.module for source in report.sources()}

    assert {"json", "json.decoder", "ast"} <= modules
    assert not any(module.startswith("test.") for module in modules)


def test_report_shows_the_most_complex_modules_of_those_that_succeeded() -> None:
    tasks = [
        task(1, State.SUCCEEDED, measure_of("simple", 2)),
        task(2, State.SUCCEEDED, measure_of("complex", 9)),
        task(3, State.DEAD, None),
    ]

    lines = report.table(report.measures(tasks), n=1).splitlines()

    assert lines[1].split() == ["complex", "9", "1", "10", "2", "f:1", "(5", "lines)"]
    assert lines[-1] == "2 modules, 20 lines, 2 functions, 9 branches"
