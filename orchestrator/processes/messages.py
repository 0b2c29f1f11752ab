"""What supervisor and children tell each other: one JSON datagram each, told apart by `kind`.

    fork server -> supervisor   ready (with its handlers' policies), failed, born (with a pidfd)
    keeper      -> supervisor   ready, down, failed
    steward     -> supervisor   ack, kill, failed
    supervisor  -> fork server  spawn
    supervisor  -> steward      handlers, report (until it is acknowledged), sync

Sockets are SOCK_SEQPACKET: a message arrives whole or not at all, and an empty one is the end.
"""

from __future__ import annotations

import array
import socket
from typing import Any

import msgspec

from orchestrator.options import Policy
from orchestrator.outcome import Cause
from orchestrator.slots import Phase

MAX_BYTES = 1 << 20

# Exit codes of the daemon that a child may ask for: start again later; it would not help.
EXIT_TEMPORARY, EXIT_CONFIG = 75, 78


class Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind"):
    """Base of all messages."""


class Ready(Message, frozen=True, kw_only=True, tag="ready"):
    """The child can do its work. A fork server tells the policy of each pattern it serves, and
    which of their handlers are `async def`."""

    policies: dict[str, Policy] = {}
    async_patterns: list[str] = []


class Down(Message, frozen=True, kw_only=True, tag="down"):
    """The embedded server ended and is started anew."""

    reason: str


class Failed(Message, frozen=True, kw_only=True, tag="failed"):
    """The child cannot do its work, and starting it again would not help."""

    message: str
    exit_code: int = EXIT_CONFIG


class Born(Message, frozen=True, kw_only=True, tag="born"):
    """A worker exists; its pidfd comes along."""

    incarnation: int
    pid: int


class Ack(Message, frozen=True, kw_only=True, tag="ack"):
    """A crash report is in the database."""

    incarnation: int


class Kill(Message, frozen=True, kw_only=True, tag="kill"):
    """End attempts, (task, token), if their workers still run them: cancelled ones are asked first.

    Many in one message: each costs the supervisor a look at all that runs.
    """

    attempts: list[tuple[int, int]]
    cause: Cause


class Spawn(Message, frozen=True, kw_only=True, tag="spawn"):
    """Fork a worker for a slot."""

    index: int
    name: str
    incarnation: int


class Handlers(Message, frozen=True, kw_only=True, tag="handlers"):
    """Which task types this node serves, and by which policies."""

    policies: dict[str, Policy]
    async_patterns: list[str] = []


class Sync(Message, frozen=True, kw_only=True, tag="sync"):
    """A new steward has now been told every report that its predecessor left."""


class Crash(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a process died of, as it is kept with the attempt. Defaults are left out."""

    cause: Cause
    signal: str | None = None
    exit_code: int | None = None
    core_dumped: bool = False
    phase: str = ""
    generation: int = 0
    max_rss_bytes: int = 0
    cpu_seconds: float = 0.0
    user_seconds: float = 0.0
    system_seconds: float = 0.0
    wall_seconds: float = 0.0
    meant_for_task: int | None = None


class Casualty(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One record with a token in the slot of a worker that died; no task while it claimed."""

    token: int
    phase: Phase
    cause: Cause
    task_id: int = 0
    attempt: int = 0
    wall_seconds: float = 0.0
    meant_for_task: int | None = None


class Report(Message, frozen=True, kw_only=True, tag="report"):
    """The death of a worker that held a token: in an async pool, of many attempts at once.

    `crash` is what they share. A thousand casualties fit into one datagram.
    """

    incarnation: int
    slot: str
    pid: int
    crash: Crash
    casualties: list[Casualty]

    def crash_of(self, casualty: Casualty) -> Crash:
        """Return what is kept with one of the attempts."""
        return msgspec.structs.replace(
            self.crash,
            cause=casualty.cause,
            phase=casualty.phase.name.lower(),
            wall_seconds=casualty.wall_seconds,
            meant_for_task=casualty.meant_for_task,
        )


ToSupervisor = Ready | Down | Failed | Born | Ack | Kill
ToSteward = Handlers | Report | Sync

_to_supervisor = msgspec.json.Decoder(ToSupervisor)
_to_steward = msgspec.json.Decoder(ToSteward)
_to_fork_server = msgspec.json.Decoder(Spawn)

encode = msgspec.json.encode


def receive(from_socket: socket.socket) -> tuple[bytes, list[int]]:
    """Read one datagram and the descriptors that came with it; empty at the end of the peer.

    Raises:
        BlockingIOError: there is none now.
    """
    try:
        data, ancillary, _, _ = from_socket.recvmsg(MAX_BYTES, socket.CMSG_SPACE(4))
    except ConnectionError:
        return b"", []
    fds = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return data, list(fds)


def decode_for_supervisor(data: bytes) -> Any:
    return _to_supervisor.decode(data)


def decode_for_steward(data: bytes) -> Any:
    return _to_steward.decode(data)


def decode_for_fork_server(data: bytes) -> Spawn:
    return _to_fork_server.decode(data)
