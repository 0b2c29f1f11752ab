"""The Python on docs/enqueueing.md runs, from top to bottom, as its reader would type it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from django.db import connections

from orchestrator import Client
from orchestrator.db.connection import Session
from tests.callers import set_up_django
from tests.sql import count, rows

PAGE = Path(__file__).parents[2] / "docs" / "enqueueing.md"


def test_python_of_the_page_runs(
    client: Client, dsn: str, session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    rows(session, "create table public.orders (id int primary key)")
    set_up_django(dsn)
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    place = dsn.removeprefix("postgresql")
    page: dict[str, Any] = {}

    for block in blocks:
        code = block.replace("://user@host/shop", place)
        exec(compile(code, str(PAGE), "exec"), page)

    orders = {task.payload["order"] for task in client.tasks(type="order:confirm")}
    assert orders == {1, 2, 3, 4, 5}
    assert rows(session, "select id from public.orders order by id") == [(2,), (3,), (4,), (5,)]
    assert (page["n_tasks"], count(session, "task")) == (5, 5 + 2500 + 1)
    assert capsys.readouterr().out.splitlines()[-1] == "2500 of 2500"
    page["client"].close()
    page["connection"].close()
    page["engine"].dispose()
    connections.close_all()


def test_sql_of_the_page_runs(client: Client, session: Session) -> None:
    (block,) = re.findall(r"^```sql\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)

    rows(session, block)

    (task,) = client.tasks()
    assert (task.payload, task.priority) == ({"order": 6}, 10)
