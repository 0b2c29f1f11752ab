"""The handler: parses one Python source file and measures it. Imported by workers only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from examples.stdlib_report.tasks import Measure, Source, measure
from orchestrator import Context, Dead, Mux, Retry

mux = Mux()

_DECISIONS = (
    ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.Assert,
    ast.match_case,
)  # fmt: skip
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@mux.handler(measure, retry=Retry(max_attempts=3, base="1s"), timeout="1m")
def measure_source(ctx: Context[None], payload: Source) -> Measure:
    """Measure the file of the payload."""
    text = Path(payload.path).read_bytes()
    try:
        tree = ast.parse(text, payload.path)
    except (SyntaxError, ValueError) as error:
        # It will be no different at the next attempt.
        raise Dead(f"{payload.path} cannot be parsed: {error}") from error
    functions = dict(_functions(tree))
    longest = max(functions, key=lambda name: functions[name], default=None)
    branches = sum(_decisions(node) for node in ast.walk(tree))
    return Measure(
        module=payload.module,
        size_bytes=len(text),
        lines=text.count(b"\n"),
        functions=len(functions),
        branches=branches,
        complexity=branches + 1,
        longest_function=longest,
        longest_function_lines=functions[longest] if longest else 0,
    )


def _decisions(node: ast.AST) -> int:
    if isinstance(node, _DECISIONS):
        return 1
    if isinstance(node, ast.BoolOp):
        return len(node.values) - 1
    if isinstance(node, ast.comprehension):
        return 1 + len(node.ifs)
    return 0


def _functions(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Yield every function, also inner ones, as "Class.name:line" with its number of lines."""
    rest: list[tuple[ast.AST, str]] = [(tree, "")]
    while rest:
        node, prefix = rest.pop()
        if isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
            prefix = f"{prefix}{node.name}."
        if isinstance(node, _FUNCTIONS):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            # One name may be defined several times, for instance for several systems.
            yield f"{prefix[:-1]}:{node.lineno}", lines
        rest.extend((child, prefix) for child in ast.iter_child_nodes(node))
