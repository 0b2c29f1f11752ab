"""The fork server: imports the user's handlers once and forks workers from that image.

It never connects and starts no thread, so that a fork is safe, and freezes the garbage collector's
view of what it imported, so that workers share those pages. A worker becomes a child of the
supervisor by a double fork:

    fork server ── fork ──> middle ── fork ──> worker
                            sends (slot, incarnation, pid, pidfd) to the supervisor, then exits;
                            the worker is re-parented to the supervisor, a subreaper

The middle process sends the message, not the worker: of workers that die young the supervisor
would otherwise never have heard. What a worker then does is in `worker.py`.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import sys
import traceback

from orchestrator import (
    config,
    loading,
    logs,
    metrics,  # noqa: F401 -- imported here so that workers share its pages; writes nothing
)
from orchestrator.db import connection  # noqa: F401 -- for the same reason
from orchestrator.errors import ConfigError
from orchestrator.mux import Mux
from orchestrator.processes import messages, worker
from orchestrator.processes.birth import begin
from orchestrator.processes.identity import PASSED_SIGNALS, Place
from orchestrator.processes.signals import SignalInbox, blocked

EXIT_HANDLERS = 3

log = logs.get("forkserver")


def main() -> int:
    place, settings = begin()
    to_supervisor = socket.socket(fileno=place.socket_fd)
    to_supervisor.set_inheritable(False)
    try:
        mux = loading.load(settings.handlers, settings.base_directory)
    except ConfigError as error:
        to_supervisor.send(messages.encode(messages.Failed(message=str(error))))
        return EXIT_HANDLERS
    policies = mux.policies(settings.defaults.policy())
    gc.collect()
    gc.freeze()
    ready = messages.Ready(policies=policies, async_patterns=mux.async_patterns())
    to_supervisor.send(messages.encode(ready))
    _serve(place, settings, mux, to_supervisor)
    return 0


def _serve(place: Place, settings: config.Settings, mux: Mux, to_supervisor: socket.socket) -> None:
    """Fork a worker for each request, until the supervisor says stop or is gone."""
    inbox = SignalInbox(PASSED_SIGNALS)
    while True:
        select.select([to_supervisor.fileno(), inbox.fileno()], [], [])
        if signal.SIGTERM in inbox.drain():
            return
        try:
            request = to_supervisor.recv(messages.MAX_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            continue
        if not request:
            return
        _fork(place, settings, mux, to_supervisor, messages.decode_for_fork_server(request))


def _fork(
    place: Place,
    settings: config.Settings,
    mux: Mux,
    to_supervisor: socket.socket,
    birth: messages.Spawn,
) -> None:
    # A signal between a fork and the child's own handlers would be lost: it stays blocked until
    # the worker has its handlers.
    with blocked(signal.valid_signals()):
        middle = os.fork()
        if middle == 0:
            code = 1
            try:
                code = _be_middle(place, settings, mux, to_supervisor, birth)
            except BaseException:  # noqa: BLE001 -- the outermost frame of a forked process
                traceback.print_exc()
            finally:
                os._exit(code)
        os.waitpid(middle, 0)


def _be_middle(
    place: Place,
    settings: config.Settings,
    mux: Mux,
    to_supervisor: socket.socket,
    birth: messages.Spawn,
) -> int:
    pid = os.fork()
    if pid == 0:
        to_supervisor.close()
        return worker.live(place, settings, mux, birth)
    born = messages.Born(incarnation=birth.incarnation, pid=pid)
    socket.send_fds(to_supervisor, [messages.encode(born)], [os.pidfd_open(pid)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
