"""What the tests of processes share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.node import Node, running


@pytest.fixture
def node(dsn: str, tmp_path: Path) -> Iterator[Node]:
    """Give a running node with two workers on a fresh database."""
    with running(dsn, tmp_path / "node") as node:
        yield node
