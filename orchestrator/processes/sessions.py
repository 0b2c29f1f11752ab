"""How the processes of a node open their sessions: one place for what settings say about it."""

from __future__ import annotations

from typing import Any

from orchestrator import config
from orchestrator.db import embedded
from orchestrator.db.connection import SHORT_KEEPALIVES, Keepalives, Session, connect


def open_session(
    settings: config.Settings,
    who: str,
    *,
    direct: bool = False,
    statement_timeout: float | None = None,
    keepalives: Keepalives = SHORT_KEEPALIVES,
    kind: type[Any] | None = None,
) -> Session:
    """Open a session that pg_stat_activity shows as "orchestrator <who>".

    `direct` passes by a pooler, as sessions that hold locks or listen must. `keepalives` are those
    of both sides; `statement_timeout` is in seconds; `kind` is the class of the connection.

    Raises:
        DatabaseUnavailable: the server cannot be reached or refuses us.
    """
    return connect(
        embedded.resolve(settings, direct=direct),
        schema=settings.database.schema,
        application_name=f"orchestrator {who}",
        connect_timeout=settings.database.connect_timeout,
        statement_timeout=statement_timeout,
        client_keepalives=keepalives,
        server_keepalives=keepalives,
        kind=kind,
    )
