"""Where an exception from outside may reach the handler of one attempt, and where it has to wait.

The worker learns that an attempt is to stop in a signal handler, between any two instructions.
From there `interrupt` raises in the handler, or cancels its asyncio task; outside the handler, and
inside `ctx.shield()`, the exception waits until that ends. It is delivered once per attempt.

Who asks for it and what follows if the handler goes on all the same is the supervisor's.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from orchestrator.errors import Interrupted


class Interrupts:
    """The interruptions of one attempt; closed until its handler begins.

    `delivered` is what has reached the handler, or is on its way as asyncio's CancelledError.
    """

    # Each method bears `interrupt` between any two of its instructions: the first interruption
    # stays in `_waiting` for ever, and whoever finds that it may be delivered delivers it.

    def __init__(self) -> None:
        self.delivered: Interrupted | None = None
        self._waiting: Interrupted | None = None
        self._is_open = False
        self._n_shields = 0
        self._thread: int | None = None
        self._task: asyncio.Task[object] | None = None

    def interrupt(self, error: Interrupted) -> None:
        """Deliver an interruption, now or when the last shield ends. For the handler's thread only.

        Raises:
            Interrupted: `error` itself, in a handler that is no coroutine.
        """
        if self._waiting is None:
            self._waiting = error
        self._deliver()

    def is_lost(self, error: BaseException | None) -> bool:
        """Tell whether this is what was delivered, and if so count it as not delivered.

        For what Python has swallowed: an exception in a `__del__`, or in a callback of the garbage
        collector, ends nothing. Whoever calls `interrupt` then delivers it once more.
        """
        if error is None or error is not self.delivered:
            return False
        self.delivered = None
        return True

    def of_task(self, task: asyncio.Task[object]) -> None:
        """From now on cancel this asyncio task instead of raising."""
        self._task = task

    def open(self) -> None:
        """The handler begins. Raises what was waiting for it."""
        self._thread = threading.get_ident()
        self._is_open = True
        self._deliver()

    def close(self) -> None:
        """The handler has ended, or is not ready for it: nothing is delivered."""
        self._is_open = False

    @contextmanager
    def shield(self) -> Iterator[None]:
        """Have interruptions wait until the block ends.

        Without effect in other threads than the handler's, where none arrive.
        """
        if self._thread not in (None, threading.get_ident()):
            yield
            return
        self._n_shields += 1
        try:
            yield
        finally:
            self._n_shields -= 1
            self._deliver()

    def _deliver(self) -> None:
        error = self._waiting
        if error is None or self.delivered is not None or self._n_shields or not self._is_open:
            return
        self.delivered = error
        if self._task is None:
            raise error
        # From a signal handler, which may have come in the middle of the loop's own code. A loop
        # that the handler closed delivers nothing.
        with suppress(RuntimeError):
            self._task.get_loop().call_soon_threadsafe(self._task.cancel)
