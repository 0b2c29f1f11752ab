"""A pool of sessions for the tasks of one event loop: `pool`, awaited.

It opens, lends and looks at its sessions as `Pool` does. It belongs to one process and one loop;
for another, the client makes a new one.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable

from orchestrator.db.async_connection import AsyncSession
from orchestrator.db.pool import has_news


class AsyncPool:
    """At most `size` sessions, lent to one task each; made by `open`."""

    def __init__(self, open: Callable[[], Awaitable[AsyncSession]], *, size: int) -> None:
        self.pid = os.getpid()
        self.loop = asyncio.get_running_loop()
        self._open = open
        self._idle: list[AsyncSession] = []  # the most recently used last
        self._is_closed = False
        self._places = asyncio.Semaphore(size)

    async def take(self) -> AsyncSession:
        """Lend a session to the calling task; wait while all are lent.

        Raises:
            DatabaseUnavailable: the server cannot be reached; nothing was sent to it.
        """
        await self._places.acquire()
        try:
            while self._idle:
                session = self._idle.pop()
                if not session.is_closed and not has_news(session.fileno()):
                    return session
                # Nearly always the end of it; a new one is had in no time.
                session.close()
            return await self._open()
        except BaseException:
            self._places.release()
            raise

    def give_back(self, session: AsyncSession) -> None:
        """Take a session back; one that is broken or in the middle of something is closed."""
        if session.is_closed or not session.is_at_rest or self._is_closed:
            session.close()
        else:
            self._idle.append(session)
        self._places.release()

    def close(self) -> None:
        """Close the idle sessions, and each lent one when it comes back."""
        self._is_closed = True
        idle, self._idle = self._idle, []
        for session in idle:
            session.close()
