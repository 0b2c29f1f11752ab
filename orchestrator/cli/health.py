"""`orchestratorctl health`: is a node ready, and if none can be asked, does the database say so?"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

import click

from orchestrator.cli.access import Access, output_option
from orchestrator.cli.failures import EXIT_FAILED
from orchestrator.cli.output import Format, show_fields, show_json
from orchestrator.db import migrate
from orchestrator.errors import OrchestratorError
from orchestrator.store.workers import nodes

_READY, _NOT_READY = "ready", "not ready"
# The daemon answers from shared memory; longer means that it does not answer.
_ANSWER_SECONDS = 5.0


@click.command()
@output_option
@click.pass_context
def health(context: click.Context) -> None:
    """Tell whether the node of this configuration works. Exit code 0 if it does, 1 if not.

    Asks http://<[web] bind>/health. Where nothing answers it looks into the database: its schema,
    and whether any node has beaten lately.
    """
    access: Access = context.obj
    shape = _of_daemon(access) or _of_database(access)
    if access.format is Format.JSON:
        show_json(shape)
    elif access.format is Format.IDS:
        click.echo(shape["status"])
    else:
        node = shape.get("node") or {}
        show_fields(
            [
                ("status", shape["status"]),
                ("reasons", "\n".join(shape["reasons"])),
                ("asked", shape["asked"]),
                ("node", str(node.get("name") or "")),
                ("nodes", ", ".join(shape.get("nodes", []))),
                ("database", str(shape.get("database", ""))),
            ]
        )
    context.exit(0 if shape["status"] == _READY else EXIT_FAILED)


def _of_daemon(access: Access) -> dict[str, Any] | None:
    """Ask the web process; None when nothing of ours listens there."""
    bind = access.settings.web.bind
    if not bind:
        return None
    host, _, port = bind.rpartition(":")
    # What listens at all addresses is reached at this one.
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)
    url = f"http://{host}:{port}/health"
    # A proxy of the environment has no business with our own node.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=_ANSWER_SECONDS) as answer:
            shape = json.load(answer)
    except urllib.error.HTTPError as error:
        # 503 says "not ready", with the reasons in the same shape.
        shape = _json(error.read())
    except (OSError, ValueError):
        return None
    # Another program may have the port: Prometheus itself has this one by default.
    if not isinstance(shape, dict) or shape.get("status") not in (_READY, _NOT_READY):
        return None
    return {"asked": url, **shape}


def _json(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _of_database(access: Access) -> dict[str, Any]:
    reasons: list[str] = []
    names: list[str] = []
    try:
        migrate.check(access.session)
        names = [node.name for node in nodes(access.session, alive_within=access.alive_within)]
        if not names:
            reasons.append(f"no node has beaten in the last {access.alive_within:g} s")
    except OrchestratorError as error:
        reasons.append(" ".join(str(error).split()))
    return {
        "asked": "database",
        "status": _NOT_READY if reasons else _READY,
        "reasons": reasons,
        "nodes": names,
    }
