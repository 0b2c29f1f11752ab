"""Registration: how a node takes its place in the database, and whom it may not stand beside.

A node that is alone (`distributed = false`) takes a schema-wide lock before it registers. A free
lock is not enough: it is free for a moment when a server restarts. A young beat is not enough
either: its node may have died a second ago. So a newcomer waits for the other's next beat (then it
is refused) or for `worker_timeout` of silence. The lock file of a dead supervisor of the same host
spares the wait.
"""

from __future__ import annotations

import socket
from datetime import datetime
from typing import Any

from orchestrator import __version__, config, logs
from orchestrator.db.connection import Session
from orchestrator.errors import DatabaseUnavailable
from orchestrator.processes import identity
from orchestrator.processes.identity import Place
from orchestrator.store import nodes

log = logs.get("steward")


class Refused(Exception):
    """This node may not run beside the one that is there."""


class NotYet(DatabaseUnavailable):
    """The database answers, and this node may not take its place in it yet."""


class Registration:
    """The place of one node: its id, 0 while it has none."""

    def __init__(self, place: Place, settings: config.Settings, node: int) -> None:
        self.place = place
        self.settings = settings
        self.node = node
        # Of other nodes, while it is open whether they live.
        self._seen_beats: dict[int, datetime] = {}

    def take(self, session: Session, patterns: list[str]) -> int:
        """Be the node again that this run was, or register as a new one; return its id.

        Raises:
            Refused: another node lives, and one of the two wants to be alone.
            NotYet: not decided, or the node's lock is not free yet.
        """
        node = self.settings.node
        self._look_for_others(session)
        if not node.distributed and not nodes.lock(session, purpose="single"):
            # Another newcomer may have taken it since we looked: look again before ending anyone.
            self._look_for_others(session)
            self._lock(session, "single", 0)
        if self.node and not any(other.id == self.node for other in nodes.alive(session)):
            log.warning("node.was_given_up", node=self.node)
            self.node = 0
        if not self.node:
            name = node.name or socket.gethostname()
            self.node = nodes.register(
                session,
                name=name,
                host=socket.gethostname(),
                pid=self.place.supervisor_pid,
                run=self.place.run,
                version=__version__,
                lock_path=self.place.lock_path,
                distributed=node.distributed,
                handlers=patterns,
                queues=[queue for pool in self.settings.pools for queue in pool.queues],
            )
            log.info("node.registered", node=self.node, name=name)
        self._lock(session, "node", self.node)
        return self.node

    def forget(self) -> None:
        """The node was marked dead: it comes back under a new id."""
        self.node = 0

    @staticmethod
    def _lock(session: Session, purpose: str, number: int) -> None:
        """Take a lock whose holder is no living node: our own old backend, or a dead node's."""
        if nodes.lock(session, purpose=purpose, number=number):
            return
        nodes.terminate_holder(session, purpose=purpose, number=number)
        if not nodes.lock(session, purpose=purpose, number=number):
            raise NotYet(f"the {purpose} lock {number} is held by another session")

    def _look_for_others(self, session: Session) -> None:
        for other in nodes.alive(session):
            is_ours = other.run == self.place.run
            if is_ours or (other.is_distributed and self.settings.node.distributed):
                continue
            if self._is_gone(other):
                nodes.mark_dead(session, node=other.id, judged=other.beat_at)
                log.info("node.found_dead", node=other.id, name=other.name)
                continue
            seen = self._seen_beats.setdefault(other.id, other.beat_at)
            if seen != other.beat_at:
                raise Refused(
                    f"[node] distributed = false, but node {other.id} ({other.name}, host "
                    f"{other.host}, pid {other.pid}) is alive on schema {session.schema!r}: stop "
                    "it, give this one another schema, or set DISTRIBUTED_MODE=true for both"
                )
            raise NotYet(
                f"node {other.id} ({other.name}) may be alive: waiting for its beat or for "
                f"{self.settings.node.worker_timeout:g} s of silence"
            )

    def _is_gone(self, other: Any) -> bool:
        """Tell whether a node is certainly dead: silent too long, or its lock file is free here."""
        if other.age_seconds >= self.settings.node.worker_timeout:
            return True
        is_here = other.host == socket.gethostname() and bool(other.lock_path)
        return is_here and identity.is_lock_free(other.lock_path)
