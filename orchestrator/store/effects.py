"""The effects of handlers in the same database: one transaction with the success of their attempt.

    first ctx.connection()   connect (once per worker), begin, mark the transaction with the token
    the handler returned     fenced success, what it enqueued, COMMIT
    it raised, was killed    ROLLBACK, by us or by the server when the connection breaks

The mark is a setting local to the transaction: where it is gone, the handler has ended that
transaction in SQL, and what it wrote is not one with its success any more. The lost reply to a
COMMIT is cleared up by the fence: either the success stands there under the token, or the task is
still ours and what the handler wrote was rolled back (`effects_were_committed`).

Which connection that is, and what the attempt becomes when its effects cannot be committed, is the
worker's.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

import psycopg2
import psycopg2.extensions

from orchestrator.db.connection import Session, translated_errors
from orchestrator.errors import DatabaseUnavailable
from orchestrator.outcome import Answer, Outcome
from orchestrator.store.finish import finish, finish_within
from orchestrator.task import Claim

_MARK = "orchestrator.attempt"
_WHY = (
    "is the runner's to call, after the handler has returned: then success and effects are one "
    "transaction. Remove the call"
)


class EffectsConnection(psycopg2.extensions.connection):  # type: ignore[misc]
    """What `ctx.connection()` gives: psycopg2's, with a transaction that is the runner's."""

    _mark = ""

    def commit(self) -> NoReturn:
        """Refuse: also at the end of `with connection:`."""
        raise RuntimeError(f"ctx.connection().commit() {_WHY} (or the `with connection:` round it)")

    def close(self) -> NoReturn:
        """Refuse: what was written would be gone, and the attempt with it."""
        raise RuntimeError(f"ctx.connection().close() {_WHY}")

    def rollback(self) -> None:
        """Undo what this attempt has written so far; it may go on."""
        super().rollback()
        if self._mark:
            self._begin(self._mark)

    @property
    def autocommit(self) -> bool:
        return False

    @autocommit.setter
    def autocommit(self, value: bool) -> None:
        if value:
            raise RuntimeError(f"ctx.connection().autocommit = True: a commit {_WHY}")

    def _begin(self, mark: str) -> None:
        with self.cursor(cursor_factory=psycopg2.extensions.cursor) as cursor:
            cursor.execute("select set_config(%s, %s, true)", (_MARK, mark))
        self._mark = mark

    def _has_mark(self) -> bool:
        with self.cursor(cursor_factory=psycopg2.extensions.cursor) as cursor:
            cursor.execute("select current_setting(%s, true)", (_MARK,))
            return bool(cursor.fetchone()[0] == self._mark)

    def _commit(self) -> None:
        super().commit()

    def _end(self) -> None:
        """Forget everything that the handler did to the session; closed where that fails."""
        self._mark = ""
        try:
            self.reset()
        except psycopg2.Error:
            self._close()

    def _close(self) -> None:
        with suppress(psycopg2.Error):
            super().close()


class Effects:
    """The connection for effects of one worker. `open` makes a session of `EffectsConnection`s."""

    def __init__(self, open: Callable[[], Session]) -> None:
        self._open = open
        self._session: Session | None = None
        self._is_begun = False

    @property
    def is_begun(self) -> bool:
        """True when the present attempt has asked for the connection."""
        return self._is_begun

    def connection(self, claim: Claim) -> Any:
        """Return the connection of an attempt, begun at the first call.

        Raises:
            DatabaseUnavailable: the server cannot be reached.
        """
        if self._is_begun and self._session is not None:
            return self._session.connection
        # Kept from another attempt; the server may have closed it meanwhile.
        if self._session is not None and self._try_to_begin(self._session, claim):
            return self._session.connection
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
            RuntimeError: the handler ended the transaction itself.
            PayloadError: the database refuses the result; rolled back.
            DatabaseUnavailable: the connection broke. With `unknown` it may be committed: ask
                `effects_were_committed`. Otherwise rolled back.
            psycopg2.Error: the transaction had failed, or a constraint was broken; rolled back.
        """
        assert self._session is not None
        connection = self._session.connection
        is_sent = False
        try:
            with translated_errors():
                if not connection._has_mark():
                    raise RuntimeError(
                        "the handler ended the transaction of ctx.connection() by COMMIT or "
                        "ROLLBACK in SQL, so its effects are not one with its success: leave both "
                        "to the runner"
                    )
            answer = finish_within(self._session, claim, outcome)
            if answer is Answer.RECORDED:
                is_sent = True
                with translated_errors():
                    connection._commit()
            return answer
        except DatabaseUnavailable as error:
            error.unknown = error.unknown and is_sent
            raise
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

    def _try_to_begin(self, session: Session, claim: Claim) -> bool:
        try:
            session.connection._begin(_mark_of(claim))
        except psycopg2.Error:
            return False
        self._is_begun = True
        return True


def effects_were_committed(session: Session, claim: Claim, outcome: Outcome) -> bool:
    """Tell, after the reply to its commit was lost, whether a success stands in the database.

    To be asked when the attempt is known to have left `running`: a commit that the server is still
    at holds that row, and whoever reports the attempt as failed waits for it.

    Raises:
        DatabaseUnavailable: ask again.
    """
    return finish(session, [(claim, outcome)])[0] is Answer.ALREADY


def _mark_of(claim: Claim) -> str:
    return f"{claim.task_id}/{claim.token}"
