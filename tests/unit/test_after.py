"""`options.after`: what follows an attempt, decided alike for exceptions and for crashes."""

from __future__ import annotations

import pytest

from orchestrator import options
from orchestrator.options import Policy, after
from orchestrator.outcome import Budget

POLICY = Policy(max_attempts=7, max_crashes=2, max_losses=5, backoff_base=3.0, backoff_cap=100.0)


@pytest.fixture
def largest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the largest possible delay drawn."""
    drawn = options.delay
    monkeypatch.setattr(
        options, "delay", lambda n, **limits: drawn(n, uniform=lambda low, high: high, **limits)
    )


@pytest.mark.parametrize(
    ("budget", "limit"), [(Budget.FAILURES, 7), (Budget.CRASHES, 2), (Budget.LOSSES, 5)]
)
def test_limit_is_that_of_the_charged_budget(budget: Budget, limit: int) -> None:
    assert after(POLICY, budget, failures=0, crashes=0).limit == limit


@pytest.mark.usefixtures("largest")
@pytest.mark.parametrize("budget", [Budget.FAILURES, Budget.CRASHES])
def test_delay_counts_failures_and_crashes_with_this_one(budget: Budget) -> None:
    assert after(POLICY, budget, failures=0, crashes=0).delay == 3.0
    assert after(POLICY, budget, failures=2, crashes=1).delay == 24.0
    assert after(POLICY, budget, failures=30, crashes=30).delay == 100.0


@pytest.mark.parametrize("budget", [Budget.LOSSES, Budget.NOTHING])
def test_what_the_task_did_not_cause_is_followed_at_once(budget: Budget) -> None:
    assert after(POLICY, budget, failures=5, crashes=1).delay == 0.0


def test_task_overrides_the_policy_of_its_handler() -> None:
    assert POLICY.of_task(max_attempts=None, timeout=None) is POLICY
    assert POLICY.of_task(max_attempts=1, timeout=2.0) == Policy(
        max_attempts=1,
        timeout=2.0,
        max_crashes=2,
        max_losses=5,
        backoff_base=3.0,
        backoff_cap=100.0,
    )
