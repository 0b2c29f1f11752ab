"""Which handler serves a type, and which numbers hold for it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.options import UNSET, HandlerOptions, Policy, match
from orchestrator.retry import Retry


def test_exact_pattern_outranks_every_prefix() -> None:
    assert match(["email:", "email:send", "e"], "email:send") == "email:send"


def test_longest_prefix_wins() -> None:
    patterns = ["email:", "email:bulk:", "image:"]

    assert match(patterns, "email:bulk:weekly") == "email:bulk:"
    assert match(reversed(patterns), "email:bulk:weekly") == "email:bulk:"


def test_only_patterns_that_end_in_a_colon_are_prefixes() -> None:
    assert match(["email:send"], "email:send_bulk") is None


def test_prefix_serves_the_bare_prefix_too() -> None:
    assert match(["email:"], "email:") == "email:"


def test_type_that_nothing_matches_has_no_handler() -> None:
    assert match(["email:"], "image:resize") is None
    assert match([], "image:resize") is None


@given(st.lists(st.text("ab:", min_size=1, max_size=4)), st.text("ab:", min_size=1, max_size=6))
def test_match_does_not_depend_on_the_order_of_registration(patterns: list[str], type: str) -> None:
    found = match(patterns, type)

    assert match(sorted(patterns), type) == found
    assert match(sorted(patterns, reverse=True), type) == found


def test_options_that_say_nothing_leave_the_defaults() -> None:
    defaults = Policy(max_attempts=4, timeout=7.0, max_crashes=2, max_losses=5)

    assert HandlerOptions().policy(defaults) == defaults


def test_retry_of_the_handler_outranks_the_defaults() -> None:
    options = HandlerOptions(retry=Retry(max_attempts=3, base="1s", cap="1m"))

    policy = options.policy(Policy(max_losses=5))

    assert policy == Policy(max_attempts=3, backoff_base=1.0, backoff_cap=60.0, max_losses=5)


@pytest.mark.parametrize(("timeout", "expected"), [(UNSET, 3600.0), (None, None), (5.0, 5.0)])
def test_timeout_of_none_means_no_limit_and_unset_means_the_default(
    timeout: object, expected: float | None
) -> None:
    options = HandlerOptions(timeout=timeout)  # type: ignore[arg-type]

    assert options.policy(Policy()).timeout == expected


def test_crash_budget_of_the_handler_outranks_the_defaults() -> None:
    assert HandlerOptions(max_crashes=1).policy(Policy()).max_crashes == 1
