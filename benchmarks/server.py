"""A PostgreSQL of the benchmark's own: the embedded one, with its settings as they ship."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.db import embedded


@contextmanager
def own_server(keep: Path | None = None) -> Iterator[str]:
    """Run a server that waits for the disk, for the length of a block; yield its URL.

    With `keep` its files lie there and are used again; else they are removed at the end.
    """
    state = keep or Path(tempfile.mkdtemp(prefix="orc-", dir="/tmp"))
    state.mkdir(parents=True, exist_ok=True)
    # Open to the user that the server is dropped to.
    state.chmod(0o755)
    server = embedded.Server(embedded.Layout(state.resolve()))
    try:
        if not server.lock("benchmark"):
            raise SystemExit(f"{state} is in use by {server.holder()}")
        server.initialise()
        server.start()
        server.wait_ready()
        yield server.layout.url()
    finally:
        server.stop()
        server.unlock()
        if keep is None:
            shutil.rmtree(state, ignore_errors=True)
