"""The effects of handlers in the same database: one transaction with the success of their attempt.

    first ctx.connection()   connect (once per worker), begin, mark the transaction with the token
    the handler returned     fenced success, what it enqueued, COMMIT
    it raised, was killed    ROLLBACK, by us or by the server when the connection breaks

The mark is a setting local to the transaction: where it is gone, the handler has ended that
transaction in SQL, and what it wrote is not one with its success any more. The lost reply to a
COMMIT is cleared up by the fence: either the success stands there under the token, or the task is
still ours and what the handler wrote was rolled back (`effects_were_committed`).

Between two attempts the session forgets what the handler did to it: settings, temporary tables,
advisory locks (DISCARD ALL), types and cursors that it registered. A handle that was kept from an
attempt that has ended refuses, so that nothing is written into the transaction of the next.

Which connection that is, and what the attempt becomes when its effects cannot be committed, is the
worker's.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

import psycopg2
import psycopg2.extensions

from orchestrator.db.connection import Session, translated_errors
from orchestrator.errors import DatabaseUnavailable
from orchestrator.outcome import Answer, Outcome
from orchestrator.store.finish import finish_within
from orchestrator.task import Claim

_WHY = (
    "is the runner's to call, after the handler has returned: then success and effects are one "
    "transaction. Remove the call"
)
_ENDED_IN_SQL = (
    "the handler ended the transaction of ctx.connection() by COMMIT or ROLLBACK in SQL (or took "
    "its mark away by RESET ALL), so its effects are not one with its success: leave both to the "
    "runner; ctx.connection().rollback() undoes what was written"
)
_HAD_FAILED = (
    "a statement on ctx.connection() had failed and the handler went on, so all of its effects are "
    "rolled back: let the error end the attempt, or call rollback() and begin again, or put what "
    "may fail behind a SAVEPOINT"
)

_NOTICE_DEATH = "set local client_connection_check_interval = '1s'"

# psycopg2's own, whatever a handler makes the default of the connection.
_PLAIN = psycopg2.extensions.cursor
_IDLE = psycopg2.extensions.TRANSACTION_STATUS_IDLE
_FAILED = psycopg2.extensions.TRANSACTION_STATUS_INERROR


class EffectsConnection(psycopg2.extensions.connection):  # type: ignore[misc]
    """What `ctx.connection()` gives: psycopg2's, with a transaction that is the runner's."""

    notices: list[str]
    notifies: list[Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Of the attempt whose transaction it is in; empty between attempts.
        self._mark = ""
        self._cursors: weakref.WeakSet[Any] = weakref.WeakSet()
        self._client_encoding = self.get_parameter_status("client_encoding")
        self._begin_sql = "set local orchestrator.attempt = %s"
        # A worker may be killed in the middle of a query, whose locks the next attempt would wait
        # for. Servers before 14 cannot notice, nor those on some systems.
        with suppress(psycopg2.Error):
            self._execute(_NOTICE_DEATH)
            self._begin_sql += f"; {_NOTICE_DEATH}"
        super().rollback()

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        """Like psycopg2's.

        Raises:
            RuntimeError: the attempt has ended, or the handler has ended its transaction in SQL.
        """
        self._check_open()
        cursor = super().cursor(*args, **kwargs)
        self._cursors.add(cursor)
        return cursor

    def lobject(self, *args: Any, **kwargs: Any) -> Any:
        """Like psycopg2's.

        Raises:
            RuntimeError: as `cursor`.
        """
        self._check_open()
        return super().lobject(*args, **kwargs)

    def rollback(self) -> None:
        """Undo what this attempt has written so far; it may go on."""
        if self._mark:
            self._begin(self._mark)
        else:
            super().rollback()

    def commit(self) -> NoReturn:
        """Refuse: also at the end of `with connection:`."""
        raise RuntimeError(f"ctx.connection().commit() {_WHY} (or the `with connection:` round it)")

    def close(self) -> NoReturn:
        """Refuse: what was written would be gone, and the attempt with it."""
        raise RuntimeError(f"ctx.connection().close() {_WHY}")

    @property
    def autocommit(self) -> bool:
        return False

    @autocommit.setter
    def autocommit(self, value: bool) -> None:
        if value:
            raise RuntimeError(f"ctx.connection().autocommit = True: a commit {_WHY}")

    # psycopg2's own refuse `set_session`, `readonly`, `tpc_begin` and the like inside of a
    # transaction, as this always is; these three would roll it back without a word.

    def set_isolation_level(self, level: int | None) -> NoReturn:
        """Refuse: it would roll back, and might switch to autocommit."""
        raise RuntimeError(
            "ctx.connection().set_isolation_level() would roll back what was written: make "
            "`set transaction isolation level ...` the first statement instead"
        )

    def set_client_encoding(self, encoding: str) -> NoReturn:
        """Refuse: it would roll back."""
        raise RuntimeError(
            "ctx.connection().set_client_encoding() would roll back what was written: remove the "
            "call, text is UTF-8 here"
        )

    def reset(self) -> NoReturn:
        """Refuse: it would roll back, and the attempt would no longer be marked."""
        raise RuntimeError(
            "ctx.connection().reset() is the runner's to call, between two attempts: to undo what "
            "was written, call rollback()"
        )

    # -- the runner's

    def _check_open(self) -> None:
        if not self._mark:
            raise RuntimeError(
                "this connection was kept from an attempt that has ended: call ctx.connection() "
                "in each attempt, and join your threads before the handler returns"
            )
        if self.get_transaction_status() == _IDLE:
            raise RuntimeError(_ENDED_IN_SQL)

    def _begin(self, mark: str) -> None:
        # What was written between two attempts, past all refusals, is nobody's.
        super().rollback()
        # No query, so that the isolation level may still be chosen, and nothing is held yet.
        self._execute(self._begin_sql, mark)
        self._mark = mark

    def _check_whole(self) -> None:
        """Make sure that all that the attempt did is in this transaction, and can be committed."""
        if self.closed:
            raise DatabaseUnavailable(
                "ctx.connection() was closed by the server while the handler ran, which rolled "
                "back all of its effects"
            )
        if self.get_transaction_status() == _FAILED:
            raise RuntimeError(_HAD_FAILED)
        # Types that a handler registered here would read our rows, and its encoding our texts.
        self.string_types.clear()
        self.binary_types.clear()
        if self.get_parameter_status("client_encoding") != self._client_encoding:
            self._execute("reset client_encoding")
        if self._execute("select current_setting('orchestrator.attempt', true)") != self._mark:
            raise RuntimeError(_ENDED_IN_SQL)

    def _commit(self) -> None:
        # In SQL, since a transaction that has failed meanwhile (by a thread that the handler left
        # behind) answers COMMIT by rolling back, which psycopg2's method does not tell. The chain
        # keeps its idea of the transaction true.
        with super().cursor(cursor_factory=_PLAIN) as cursor:
            cursor.execute("commit and chain")
            if cursor.statusmessage != "COMMIT":
                raise RuntimeError(_HAD_FAILED)

    def _end(self) -> None:
        """Forget everything that the handler did to the session; closed where that fails."""
        self._mark = ""
        try:
            super().rollback()
            for cursor in self._cursors:
                if cursor.name is None:  # those with a name end with their transaction
                    cursor.close()
            self._cursors.clear()
            self.cursor_factory = None
            self.string_types.clear()
            self.binary_types.clear()
            self.notices = []
            self.notifies = []
            super().reset()
        except psycopg2.Error:
            self._close()

    def _close(self) -> None:
        self._mark = ""
        with suppress(psycopg2.Error):
            super().close()

    def _execute(self, statement: str, *parameters: str) -> Any:
        with super().cursor(cursor_factory=_PLAIN) as cursor:
            cursor.execute(statement, parameters)
            return cursor.fetchone()[0] if cursor.description else None


class Effects:
    """The connection for effects of one worker. `open` makes a session of `EffectsConnection`s."""

    def __init__(self, open: Callable[[], Session]) -> None:
        self._open = open
        self._session: Session | None = None
        self._is_begun = False
        # Threads of one handler may all be the first to ask.
        self._lock = threading.Lock()

    @property
    def is_begun(self) -> bool:
        """True when the present attempt has asked for the connection."""
        return self._is_begun

    def connection(self, claim: Claim) -> Any:
        """Return the connection of an attempt, begun at the first call.

        Once begun it is the same to the end of the attempt, also when it breaks.

        Raises:
            DatabaseUnavailable: the server cannot be reached.
        """
        with self._lock:
            if self._session is None or not (self._is_begun or self._try_to_begin(claim)):
                # None yet, or the server has closed the one that was kept.
                self.close()
                self._session = self._open()
                with translated_errors():
                    self._session.connection._begin(_mark_of(claim))
                self._is_begun = True
            return self._session.connection

    def commit(self, claim: Claim, outcome: Outcome) -> Answer:
        """Commit the handler's work together with the success of its attempt; end either way.

        LOST means that the claim was gone, and that everything was rolled back.

        Raises:
            PayloadError: the database refuses the result; rolled back.
            RuntimeError: the handler ended the transaction itself, or it had failed; rolled back,
                but for what the handler committed.
            DatabaseUnavailable, psycopg2.Error: the connection broke, a constraint was broken. In
                doubt about the reply to the COMMIT, ask `effects_were_committed`.
        """
        assert self._session is not None
        connection = self._session.connection
        try:
            connection._check_whole()
            answer = finish_within(self._session, claim, outcome)
            if answer is Answer.RECORDED:
                connection._commit()
            return answer
        finally:
            self.roll_back()

    def roll_back(self) -> None:
        """Undo what the attempt has written, if anything, and make ready for the next."""
        if self._session is not None and self._is_begun:
            self._session.connection._end()
            if self._session.is_closed:
                self._session = None
        self._is_begun = False

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._session is not None:
            self._session.connection._close()
            self._session = None
        self._is_begun = False

    def _try_to_begin(self, claim: Claim) -> bool:
        assert self._session is not None
        try:
            self._session.connection._begin(_mark_of(claim))
        except psycopg2.Error:
            return False
        self._is_begun = True
        return True


def effects_were_committed(session: Session, claim: Claim) -> bool:
    """Tell, after the reply to its commit was lost, whether a success stands in the database.

    To be asked when the attempt is known to have left `running`: a commit that the server is still
    at holds that row, and whoever reports the attempt as failed waits for it.

    Raises:
        DatabaseUnavailable: ask again.
    """
    return bool(session.value("is_finished", id=claim.task_id, token=claim.token))


def _mark_of(claim: Claim) -> str:
    return f"{claim.task_id}/{claim.token}"
