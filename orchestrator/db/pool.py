"""A pool of sessions for threads of one process.

It opens a session when a thread needs one and none is idle, up to its size; then threads wait.
What a lost session means for the statement that ran on it, and whether to send that again, is the
client's business.

Idle sessions are looked at before they are lent: a server that went away has said good-bye by
then (or the kernel's keepalives have noticed, within about 5 s), which shows as something to read
on a connection that expects nothing. That costs one system call and no round trip, and the first
call after a restart of the server works.

A process that is forked must not touch the connections of its parent, not even to close them: the
server would take the farewell for the parent's. psycopg2 leaves connections of another process
alone when they are collected, so a pool from before a fork is simply let go (`client.py`).
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable

from psycopg2.extensions import TRANSACTION_STATUS_IDLE

from orchestrator.db.connection import Session


class Pool:
    """At most `size` sessions, lent to one thread each; made by `open`."""

    def __init__(self, open: Callable[[], Session], *, size: int) -> None:
        self.pid = os.getpid()
        self._open = open
        self._size = size
        self._idle: list[Session] = []  # the most recently used last
        self._n_open = 0
        self._is_closed = False
        self._changed = threading.Condition()

    def take(self) -> Session:
        """Lend a session to the calling thread; wait while all are lent.

        Raises:
            DatabaseUnavailable: the server cannot be reached; nothing was sent to it.
        """
        with self._changed:
            while True:
                while self._idle:
                    session = self._idle.pop()
                    if _is_usable(session):
                        return session
                    session.close()
                    self._n_open -= 1
                if self._n_open < self._size:
                    self._n_open += 1
                    break
                self._changed.wait()
        try:
            return self._open()
        except BaseException:
            self._forget_one()
            raise

    def give_back(self, session: Session) -> None:
        """Take a session back; one that is broken or in the middle of something is closed."""
        if session.is_closed or not _is_at_rest(session) or self._is_closed:
            session.close()
            self._forget_one()
            return
        with self._changed:
            self._idle.append(session)
            self._changed.notify()

    def close(self) -> None:
        """Close the idle sessions, and each lent one when it comes back."""
        with self._changed:
            self._is_closed = True
            idle, self._idle = self._idle, []
            self._n_open -= len(idle)
        for session in idle:
            session.close()

    def _forget_one(self) -> None:
        with self._changed:
            self._n_open -= 1
            self._changed.notify()


def _is_at_rest(session: Session) -> bool:
    return bool(session.connection.get_transaction_status() == TRANSACTION_STATUS_IDLE)


def _is_usable(session: Session) -> bool:
    if not has_news(session.fileno()):
        return True
    # Nearly always the end; rarely a notice or a TLS ticket, which an answer follows.
    try:
        with session.connection.cursor() as cursor:
            cursor.execute("select 1")
    except Exception:  # noqa: BLE001 - whatever is wrong with it, a new session has not got it
        return False
    return True


def has_news(fileno: int) -> bool:
    """Return whether there is something to read, where nothing is expected."""
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(fileno, select.POLLIN)
        return bool(poll.poll(0))
    return bool(select.select([fileno], [], [], 0)[0])
