"""Where an exception from outside may reach the handler of one attempt, and where it has to wait.

The worker learns that an attempt is to stop in a signal handler, between any two instructions.
From there `interrupt` raises in the handler, or cancels its asyncio task; outside the handler, and
inside `ctx.shield()`, the exception waits until that ends. It is delivered once per attempt.

Who asks for it and what follows if the handler goes on all the same is the supervisor's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from orchestrator.errors import Interrupted


class Interrupts:
    """The interruptions of one attempt; closed until its handler begins.

    `delivered` is what has reached the handler, or is on its way as asyncio's CancelledError.
    """

    def __init__(self) -> None:
        self.delivered: Interrupted | None = None
        self._waiting: Interrupted | None = None
        self._n_shields = 1
        self._task: asyncio.Task[object] | None = None

    def interrupt(self, error: Interrupted) -> None:
        """Deliver an interruption, now or when the last shield ends. For the handler's thread only.

        Raises:
            Interrupted: `error` itself, in a handler that is no coroutine.
        """
        if self.delivered is not None or self._waiting is not None:
            return
        if self._n_shields:
            self._waiting = error
        else:
            self._deliver(error)

    def of_task(self, task: asyncio.Task[object]) -> None:
        """From now on cancel this asyncio task instead of raising."""
        self._task = task

    def open(self) -> None:
        """The handler begins. Raises what was waiting for it."""
        self._n_shields = 0
        self._deliver_waiting()

    def close(self) -> None:
        """The handler has ended: nothing is delivered any more."""
        self._n_shields = 1

    @contextmanager
    def shield(self) -> Iterator[None]:
        """Have interruptions wait until the block ends."""
        self._n_shields += 1
        try:
            yield
        finally:
            self._n_shields -= 1
            if not self._n_shields:
                self._deliver_waiting()

    def _deliver_waiting(self) -> None:
        error, self._waiting = self._waiting, None
        if error is not None:
            self._deliver(error)

    def _deliver(self, error: Interrupted) -> None:
        self.delivered = error
        if self._task is None:
            raise error
        # From a signal handler, which may have come in the middle of the loop's own code.
        self._task.get_loop().call_soon_threadsafe(self._task.cancel)
