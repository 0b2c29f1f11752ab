"""The code in the documents: where it stands, in which language, and which of it may not be run.

A block that cannot be run says why, in a comment before it that readers do not see:

    <!-- not run: it needs a second host -->

How a language is run is the business of the tests.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    [
        ROOT / "README.md",
        ROOT / "QUICKSTART.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "examples").glob("*/README.md"),
    ]
)

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_NOT_RUN = re.compile(r"<!-- not run: (.*?) -->\s*\Z", re.DOTALL)
# A file that the reader is to make: named in the first line of the block, or in the text before it.
_NAMED_INSIDE = re.compile(r"\A# ([\w/-]+\.\w+)\b")
_NAMED_BEFORE = re.compile(r"`([\w/-]+\.\w+)`[^`\n]*(?:\n[^`\n]+)*:\n\n\Z")


@dataclass(frozen=True)
class Block:
    """One fenced block. `line` counts from 1; `reason` is why it is not run, None if it is.

    `file` is the path of the file that the reader shall write it to, None where it is none;
    `heading` is the nearest one above it.
    """

    page: Path
    line: int
    language: str
    content: str
    reason: str | None
    file: str | None
    heading: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path, *languages: str) -> list[Block]:
    """Return the blocks of a page in their order; of these languages, if any are given."""
    found = _found(page)
    return [block for block in found if not languages or block.language in languages]


def run_blocks(page: Path, *languages: str) -> list[Block]:
    """Return those that are to be run."""
    return [block for block in blocks(page, *languages) if block.reason is None]


def _found(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for match in _FENCE.finditer(text):
        indent, language, content = match.groups()
        before = text[: match.start()]
        reason = _NOT_RUN.search(before)
        file = _NAMED_INSIDE.match(content) or _NAMED_BEFORE.search(before)
        yield Block(
            page=page,
            line=before.count("\n") + 1,
            language=language,
            content=re.sub(rf"^{indent}", "", content, flags=re.MULTILINE),
            reason=" ".join(reason[1].split()) if reason else None,
            file=file[1] if file else None,
            heading=["", *_HEADING.findall(before)][-1],
        )
