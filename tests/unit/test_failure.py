"""What is kept about an exception: readable, bounded, and acceptable to PostgreSQL."""

from __future__ import annotations

import decimal
from typing import Any

import pytest

from orchestrator.errors import Dead
from orchestrator.failure import MAX_MESSAGE_BYTES, MAX_TRACEBACK_BYTES, cleaned, describe
from orchestrator.outcome import Failure


def described(error: BaseException) -> Failure:
    try:
        raise error
    except BaseException as caught:  # noqa: BLE001 - any kind is described
        return describe(caught)


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (ValueError("x"), "ValueError"),
        (decimal.InvalidOperation(), "decimal.InvalidOperation"),
        (Dead("x"), "Dead"),
    ],
)
def test_type_is_named_with_its_module_unless_everybody_knows_it(
    error: BaseException, name: str
) -> None:
    assert described(error).type == name


def test_nul_and_surrogates_are_replaced() -> None:
    failure = described(ValueError("a\0b\ud800c"))

    assert failure.message == "a\ufffdb\ufffdc"
    assert failure.traceback is not None
    assert "\0" not in failure.traceback
    failure.traceback.encode("utf-8")


def test_message_and_traceback_are_bounded_in_bytes() -> None:
    failure = described(ValueError("é" * 100_000 + "the end"))

    assert failure.traceback is not None
    assert len(failure.message.encode()) <= MAX_MESSAGE_BYTES
    assert len(failure.traceback.encode()) <= MAX_TRACEBACK_BYTES
    assert failure.traceback.startswith("Traceback")
    assert failure.traceback.endswith("the end\n")
    assert "bytes left out" in failure.traceback


def test_text_within_the_limit_is_left_alone() -> None:
    assert cleaned("x" * 50, 50) == "x" * 50
    assert cleaned("x" * 200, 100) != "x" * 200


def test_endless_recursion_is_told_in_few_lines() -> None:
    def recurse(n: int) -> int:
        return recurse(n + 1)

    try:
        recurse(0)
    except RecursionError as error:
        failure = describe(error)

    assert failure.traceback is not None
    assert "more times" in failure.traceback
    assert "bytes left out" not in failure.traceback


def test_exit_of_the_interpreter_is_spelled_out() -> None:
    assert described(SystemExit(3)).message == "the handler called sys.exit(3)"


def test_exception_that_cannot_be_printed_is_described_all_the_same() -> None:
    class Evil(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    failure = described(Evil())

    assert failure.type.endswith("Evil")
    assert failure.message == "(the exception cannot be printed: RuntimeError)"


def test_cause_is_told_with_the_traceback() -> None:
    def fail() -> Any:
        try:
            {}["x"]
        except KeyError as error:
            raise ValueError("y") from error

    try:
        fail()
    except ValueError as error:
        failure = describe(error)

    assert failure.traceback is not None
    assert "KeyError: 'x'" in failure.traceback
    assert failure.traceback.endswith("ValueError: y\n")
