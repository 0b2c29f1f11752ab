"""docs/metrics.md and the table in metrics.py say the same."""

from __future__ import annotations

import re
from pathlib import Path

from orchestrator.metrics import METRICS

DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"
ROW = re.compile(r"\| `([a-z_]+)` \| (\w+) \| ([^|]*) \| (\w+) \| ([^|]*) \|")


def test_the_document_lists_every_metric_as_it_is_defined() -> None:
    rows = [ROW.fullmatch(line) for line in DOCUMENT.read_text(encoding="utf-8").splitlines()]
    listed = [row.groups() for row in rows if row is not None]

    assert listed == [
        (
            metric.name,
            metric.kind,
            " ".join(f"`{label}`" for label in metric.labels) or "-",
            str(metric.source),
            metric.help,
        )
        for metric in METRICS
    ]


def test_queries_in_the_document_name_metrics_that_exist() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    queries = "\n".join(re.findall(r"```promql\n(.*?)```", text, re.DOTALL))
    named = set(re.findall(r"\b(?:tasks?|orchestrator|worker_pool|leader)_[a-z_]+", queries))
    suffixes = ("", "_bucket", "_sum", "_count")

    known = {metric.name + suffix for metric in METRICS for suffix in suffixes}

    assert named - {"worker_id"} <= known
    assert named
