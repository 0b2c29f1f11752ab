"""Signals without work in handlers: the handlers are no-ops, the numbers arrive on a descriptor.

`set_wakeup_fd` writes each signal's number to a socket that the process's one loop reads. A signal
that arrives between two system calls is therefore never lost and never runs code of ours at a
place that does not expect it.
"""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Iterable, Iterator
from types import FrameType

# From the supervisor to a worker: look which attempt it asks to stop.
STOP_ATTEMPT = signal.SIGRTMIN + 1


def _ignore(signum: int, frame: FrameType | None) -> None:
    """Exist, so that the interpreter writes the number to the wakeup descriptor."""


class SignalInbox:
    """The signals of this process, as numbers to be read."""

    def __init__(self, signums: Iterable[int], ignored: Iterable[int] = ()) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for signum in signums:
            signal.signal(signum, _ignore)
            # Interrupted system calls go on by themselves; the loop hears of it by the inbox.
            signal.siginterrupt(signum, False)
        for signum in ignored:
            signal.signal(signum, signal.SIG_IGN)

    def fileno(self) -> int:
        return self._reader.fileno()

    def drain(self) -> list[int]:
        """Return the signals that arrived since the last call, in order."""
        numbers: list[int] = []
        with contextlib.suppress(BlockingIOError):
            while chunk := self._reader.recv(4096):
                numbers.extend(chunk)
        return numbers


def spell(signum: int) -> str:
    """Name a signal; real-time ones, most of which have no name, are counted from SIGRTMIN."""
    try:
        return signal.Signals(signum).name
    except ValueError:
        return f"SIGRTMIN+{signum - signal.SIGRTMIN}"


@contextlib.contextmanager
def blocked(signums: Iterable[int]) -> Iterator[None]:
    """Block signals round a fork: what comes before the child's own handlers stand is kept."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signums)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_at_latest(seconds: float) -> None:
    """Have the kernel end this process then, whatever it is doing. For who leaves unasked.

    A process that was told to end is seen to by who told it. One that leaves of its own accord runs
    user code on its way (lifespans, threads that a task left behind), which may never end.
    """
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    # Zero would be no limit.
    signal.setitimer(signal.ITIMER_REAL, max(0.001, seconds))


def forget_inherited() -> None:
    """Undo what a forked process inherited: the wakeup descriptor and the handlers."""
    signal.set_wakeup_fd(-1)
    for signum in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if signal.getsignal(signum) not in (signal.SIG_DFL, None):
            signal.signal(signum, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
