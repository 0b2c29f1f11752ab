"""The code in the documents: none is left out in silence, settings and JSON can be read.

Python, SQL and commands of the shell need a database or a node, and are run by
`tests/process/test_documents_run.py`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from orchestrator import config
from tests.blocks import PAGES, ROOT, Block, blocks, run_blocks

# Who runs a language, wherever it stands. Drawings and output have none, and are no code.
RUN_BY = {
    "python": "tests/process/test_documents_run.py",
    "sql": "tests/process/test_documents_run.py",
    "sh": "tests/process/test_documents_run.py",
    "console": "tests/process/test_documents_run.py",
    "toml": "tests/unit/test_document_blocks.py",
    "json": "tests/unit/test_document_blocks.py",
    "promql": "tests/unit/test_metrics_document.py",
    "": "",
    "text": "",
}
MOST_NOT_RUN = 6

ALL = [block for page in PAGES for block in blocks(page)]


def of(*languages: str) -> list[Block]:
    return [block for page in PAGES for block in run_blocks(page, *languages)]


@pytest.mark.parametrize("block", ALL, ids=str)
def test_language_of_a_block_is_one_that_a_test_runs(block: Block) -> None:
    runner = RUN_BY.get(block.language)

    assert block.reason or runner is not None, f"nothing runs {block.language}"
    assert not runner or (ROOT / runner).is_file()


@pytest.mark.parametrize("block", [b for b in ALL if not RUN_BY.get(b.language)], ids=str)
def test_block_without_a_language_holds_no_commands_and_no_statements(block: Block) -> None:
    code = re.compile(r"^(\$ |bin/|export |import |from \w+ import |select |\[\[?\w+\]\]?$)", re.M)

    assert block.reason or not code.search(block.content), "name its language, so that it is run"


def test_few_blocks_are_not_run_and_each_says_why() -> None:
    not_run = [block for block in ALL if block.reason is not None]

    assert len(not_run) <= MOST_NOT_RUN, [f"{block}: {block.reason}" for block in not_run]
    assert all(len(str(block.reason)) > 10 for block in not_run)


def test_pages_hold_what_is_to_be_found() -> None:
    # Of an expression that finds nothing, every test would hold.
    assert len(of("python")) >= 12
    assert len(of("toml")) >= 3
    assert len(of("console", "sh")) >= 10
    assert {block.file for block in blocks(ROOT / "README.md")} >= {"shop_tasks.py"}


@pytest.mark.parametrize("block", of("toml"), ids=str)
def test_settings_in_the_documents_are_right(block: Block, tmp_path: Path) -> None:
    path = tmp_path / "orchestrator.toml"
    path.write_text(block.content)

    assert config.load(str(path), environ={}).source == str(path)


@pytest.mark.parametrize("block", of("json"), ids=str)
def test_json_in_the_documents_is_json(block: Block) -> None:
    assert json.loads(block.content)
