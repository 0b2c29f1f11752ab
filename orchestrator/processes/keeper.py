"""The keeper: runs the embedded PostgreSQL for a daemon, as the server's direct parent.

First started, last stopped. What it tells the supervisor, one JSON datagram each:

    {"kind": "ready"}                      the server takes connections (again)
    {"kind": "down", "reason": ...}        the server ended; the keeper starts it anew
    {"kind": "failed", "message": ...}     it never ran and starting it again would not help

The server ends with TERM, INT or QUIT to the keeper, always by a clean shutdown. When the
supervisor is gone (EOF of the life pipe) the keeper first waits, up to 5 s, until no other process
of this run is left: the steward, which ends them, still has crash reports to write. When the
keeper itself is killed, the kernel tells the server to shut down, and the lock is free once it
has; the next keeper waits for that.

How the server is made and started is `db/embedded.py`'s business. The keeper opens no connection
and loads no driver.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import selectors
import signal
import socket
import sys
import time

from orchestrator import logs
from orchestrator.db.embedded import Server
from orchestrator.errors import ConfigError
from orchestrator.processes.identity import Place, all_pids, has_marker, set_title
from orchestrator.processes.signals import SignalInbox

_STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
_IGNORED = (
    signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU, signal.SIGWINCH,
)  # fmt: skip

_LOCK_POLL_SECONDS = 0.05
_READY_POLL_SECONDS = 0.005
# How long the others of an orphaned run get to write what they know.
_ORPHANED_SECONDS = 5.0
# A server that ran for this long starts its back-off anew.
_HEALTHY_SECONDS = 10.0
_LONGEST_PAUSE_SECONDS = 5.0
# A server may fail once or twice while what was left of a killed one still goes away.
_TRIES_AT_START = 3

log = logs.get("keeper")


class Stopped(Exception):
    """Somebody wants the server to end."""


class Keeper:
    """The loop of one keeper; everything happens in the main thread."""

    def __init__(self, place: Place, server: Server, *, has_run_before: bool) -> None:
        self.place = place
        self.server = server
        self.was_ready = has_run_before
        self.socket = socket.socket(fileno=place.socket_fd)
        self.socket.setblocking(False)
        self.inbox = SignalInbox((*_STOPPING, signal.SIGCHLD), _IGNORED)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.inbox, selectors.EVENT_READ)
        self.selector.register(place.life_fd, selectors.EVENT_READ)
        self.early_ends = 0

    def run(self) -> int:
        """Keep the server running until told to stop; return the exit code."""
        try:
            self._take_lock()
            if self.server.initialise():
                log.info("database.created", directory=str(self.server.data))
            while True:
                self._run_server()
        except Stopped as reason:
            log.info("server.stopping", reason=str(reason))
            return 0
        except ConfigError as error:
            self._tell("failed", message=str(error))
            return 1
        finally:
            self.server.stop()
            self.server.unlock()

    def _take_lock(self) -> None:
        began_at, is_told = time.monotonic(), False
        while not self.server.lock("keeper"):
            if not is_told and time.monotonic() - began_at > 1.0:
                is_told = True
                log.warning(
                    "lock.awaited",
                    lock=str(self.server.layout.lock),
                    holder=self.server.holder(),
                    reason="another command or daemon runs the embedded PostgreSQL of this state "
                    "directory, or the one of a killed daemon is still shutting down",
                )
            self._wait(_LOCK_POLL_SECONDS)

    def _run_server(self) -> None:
        """Start the server, see it end, and wait as long as it is wise before the next start.

        Raises:
            Stopped: told to.
            ConfigError: it ended without ever having been ready, in this run or before.
        """
        began_at = time.monotonic()
        try:
            self.server.start()
            while not self.server.is_ready():
                self.server.check_alive()
                self._wait(_READY_POLL_SECONDS)
            self.was_ready = True
            log.info(
                "server.ready",
                server=self.server.pid,
                version=self.server.version,
                seconds=round(time.monotonic() - began_at, 3),
                directory=str(self.server.data),
            )
            self._tell("ready")
            while True:
                self.server.check_alive()
                self._wait(None)
        except ConfigError as error:
            # The zombie has been waited for: while it exists, PostgreSQL takes it for alive.
            self._judge_end(error, seconds=time.monotonic() - began_at)

    def _judge_end(self, error: ConfigError, *, seconds: float) -> None:
        self.early_ends = 0 if seconds >= _HEALTHY_SECONDS else self.early_ends + 1
        if not self.was_ready and self.early_ends >= _TRIES_AT_START:
            raise error
        pause = 0.0
        if self.early_ends:
            longest = min(_LONGEST_PAUSE_SECONDS, 0.05 * 2.0**self.early_ends)
            pause = random.uniform(longest / 2, longest)
        log.error(
            "server.ended", seconds=round(seconds, 3), pause=round(pause, 3), reason=str(error)
        )
        if self.was_ready:
            self._tell("down", reason=str(error))
        self._sleep(pause)

    def _sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._wait(left)

    def _wait(self, seconds: float | None) -> None:
        """Wait for a signal, the end of the supervisor, or `seconds`.

        Raises:
            Stopped: it is time to end the server.
        """
        for key, _ in self.selector.select(seconds):
            if key.fileobj is self.inbox:
                for signum in self.inbox.drain():
                    if signum in _STOPPING:
                        raise Stopped(signal.Signals(signum).name)
            elif not os.read(self.place.life_fd, 64):
                self._outlive_others()
                raise Stopped("the supervisor is gone")

    def _outlive_others(self) -> None:
        until = time.monotonic() + _ORPHANED_SECONDS
        own = os.getpid()
        while time.monotonic() < until:
            if not any(has_marker(pid, self.place.run) for pid in all_pids() if pid != own):
                return
            time.sleep(0.05)

    def _tell(self, kind: str, **message: object) -> None:
        # A supervisor that is gone, or too busy to read, learns the rest from the database.
        with contextlib.suppress(OSError):
            self.socket.send(json.dumps({"kind": kind, **message}).encode())


def main() -> None:
    """Run the keeper of the supervisor that started this process."""
    place = Place.here()
    set_title("orc-keeper")
    settings = place.settings()
    logs.configure(settings.logging, identity=place.identity())
    # A node that is registered has worked with this database: from then on it waits for it.
    has_run_before = bool(place.slots().header.node_id)
    keeper = Keeper(place, Server.of(settings), has_run_before=has_run_before)
    sys.exit(keeper.run())


if __name__ == "__main__":
    main()
