"""What a handler asks for when it runs, the rule by which a type finds its handler, and the
rule by which an attempt that did not succeed is followed by the next.

All are values without user code in them: the runner decides about exceptions, the steward about
crashes and timeouts, both from a `Policy` and with `after`; the steward never imports a handler.
The delay itself is drawn in `retry`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from orchestrator.outcome import Budget
from orchestrator.retry import Retry, delay


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers that decide how an attempt may run and what follows when it does not succeed.

    `timeout` is in seconds per attempt, None for no limit; `backoff_base` and `backoff_cap` are
    seconds. The fork server exports one per pattern, with `[defaults]` filled in.
    """

    max_attempts: int = 10
    backoff_base: float = 5.0
    backoff_cap: float = 3600.0
    timeout: float | None = 3600.0
    max_crashes: int = 3
    max_losses: int = 10

    def of_task(self, *, max_attempts: int | None, timeout: float | None) -> Policy:
        """Return the policy of one task: what its enqueuer asked for goes before the handler's."""
        changes: dict[str, object] = {}
        if max_attempts is not None:
            changes["max_attempts"] = max_attempts
        if timeout is not None:
            changes["timeout"] = timeout
        return msgspec.structs.replace(self, **changes) if changes else self


class Unset(msgspec.Struct, frozen=True):
    """The type of `UNSET`: an option that was not given, where None has a meaning."""


UNSET = Unset()


@dataclass(frozen=True, kw_only=True)
class HandlerOptions:
    """The options of one registered handler; what is unset is decided by `[defaults]`."""

    retry: Retry | None = None
    timeout: float | Unset | None = UNSET
    max_crashes: int | None = None

    def policy(self, defaults: Policy) -> Policy:
        """Fill in the defaults."""
        changes: dict[str, object] = {}
        if self.retry is not None:
            changes["max_attempts"] = self.retry.max_attempts
            changes["backoff_base"] = self.retry.base
            changes["backoff_cap"] = self.retry.cap
        if not isinstance(self.timeout, Unset):
            changes["timeout"] = self.timeout
        if self.max_crashes is not None:
            changes["max_crashes"] = self.max_crashes
        return msgspec.structs.replace(defaults, **changes)


def match(patterns: Iterable[str], type: str) -> str | None:
    """Return the pattern that serves a task type: the exact one, else the longest prefix.

    Only patterns that end in ":" are prefixes. None when no pattern matches.
    """
    best: str | None = None
    for pattern in patterns:
        if pattern == type:
            return pattern
        is_prefix = pattern.endswith(":") and type.startswith(pattern)
        if is_prefix and (best is None or len(pattern) > len(best)):
            best = pattern
    return best


class Next(NamedTuple):
    """What follows an attempt: the size of the charged budget, the seconds until the next."""

    limit: int
    delay: float


def after(policy: Policy, budget: Budget, *, failures: int, crashes: int) -> Next:
    """Decide what follows an attempt that is charged to `budget`.

    `failures` and `crashes` are what was charged *before* this attempt. Whether the budget is
    spent is decided where the counters are kept: the database compares them with `limit`.
    A lost node and what costs nothing are followed at once: it was not the task's doing.
    """
    match budget:
        case Budget.FAILURES:
            limit = policy.max_attempts
        case Budget.CRASHES:
            limit = policy.max_crashes
        case Budget.LOSSES:
            return Next(policy.max_losses, 0.0)
        case Budget.NOTHING | Budget.SUSPECT:
            return Next(1, 0.0)
    n = failures + crashes + 1
    return Next(limit, delay(n, base=policy.backoff_base, cap=policy.backoff_cap))
