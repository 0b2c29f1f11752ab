"""The examples, each on a real node as its README starts it, and its worst moment."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from examples.email import send
from examples.email.mailserver import MailServer, Received
from examples.email.tasks import Message
from examples.simulation import handlers as simulation
from examples.simulation import study
from examples.simulation.tasks import Moments, Part
from examples.thumbnails import make
from examples.webapp.app import create_app, engine_of, make_tables, place_order
from orchestrator import Client, Context, State, config
from orchestrator.db.connection import Session
from tests.node import ROOT, Node, running
from tests.sql import rows
from tests.support import eventually

EXAMPLES = sorted(path.parent.name for path in ROOT.glob("examples/*/orchestrator.toml"))


@contextmanager
def started(name: str, dsn: str, tmp_path: Path) -> Iterator[Node]:
    with running(dsn, tmp_path / "node", handlers=(f"examples.{name}.handlers",)) as node:
        yield node


def outcomes(client: Client, task_id: int) -> list[str | None]:
    return [attempt.outcome for attempt in client.get(task_id).attempts]


def test_every_example_has_its_readme_its_task_types_and_its_handlers() -> None:
    folders = [path for path in (ROOT / "examples").glob("[a-z]*") if path.is_dir()]

    for folder in folders:
        assert {"README.md", "tasks.py", "handlers.py"} <= {path.name for path in folder.iterdir()}
        assert f"[{folder.name}](" in (ROOT / "examples/README.md").read_text()


@pytest.mark.parametrize("name", EXAMPLES)
def test_settings_of_an_example_name_its_handlers(name: str) -> None:
    settings = config.load(str(ROOT / "examples" / name / "orchestrator.toml"), environ={})

    assert settings.handlers.modules == (f"examples.{name}.handlers",)
    assert [Path(settings.base_directory, path).resolve() for path in settings.handlers.path] == [
        ROOT
    ]


# -- email


@pytest.fixture
def mailserver(monkeypatch: pytest.MonkeyPatch) -> Iterator[MailServer]:
    with MailServer() as server:
        monkeypatch.setenv("SMTP_PORT", str(server.port))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def email_node(dsn: str, tmp_path: Path, mailserver: MailServer) -> Iterator[Node]:
    with started("email", dsn, tmp_path) as node:
        yield node


def test_email_enqueued_twice_with_one_key_is_sent_once(
    dsn: str, client: Client, tmp_path: Path, mailserver: MailServer
) -> None:
    message = Message("ada@example.org", "Your order 17", "")
    tasks = [send.enqueue(client, message, "order-17") for _ in range(2)]

    with started("email", dsn, tmp_path):
        result = client.result(tasks[0], timeout=20)

    assert [task.existing for task in tasks] == [False, True]
    assert [str(one.email["Message-ID"]) for one in mailserver.received] == [result.message_id]


def test_email_that_is_refused_for_good_is_dead_after_one_attempt(
    email_node: Node, client: Client, mailserver: MailServer
) -> None:
    mailserver.answer = lambda command, argument: "550 no such user" if command == "RCPT" else "250"

    ended = client.wait(send.enqueue(client, Message("x@example.org", "", ""), None), timeout=20)

    assert (ended.state, ended.attempt) == (State.DEAD, 1)
    assert "550 no such user" in str(ended.error)


def test_worker_killed_when_the_server_has_the_email_sends_a_copy_with_the_same_message_id(
    email_node: Node, client: Client, mailserver: MailServer
) -> None:
    def kill_worker(received: Received) -> None:
        # Once: the server has the message, and the worker does not know it yet.
        mailserver.on_message = lambda message: None
        (pid,) = [
            attempt.pid for task in client.tasks(state="running") for attempt in attempts(task.id)
        ]
        os.kill(pid, signal.SIGKILL)

    def attempts(task_id: int) -> list[object]:
        return [one for one in client.get(task_id).attempts if one.outcome is None]

    mailserver.on_message = kill_worker

    task = send.enqueue(client, Message("ada@example.org", "Your order 17", ""), None)
    result = client.result(task, timeout=20)

    assert outcomes(client, task.id) == ["crashed", "succeeded"]
    assert [one.email["Message-ID"] for one in mailserver.received] == [result.message_id] * 2


# -- thumbnails


def test_thumbnails_of_a_folder_are_made_and_what_is_no_picture_is_dead(
    dsn: str, client: Client, tmp_path: Path
) -> None:
    folder, small = tmp_path / "pictures", tmp_path / "small"
    folder.mkdir()
    for name in ("a.png", "b.jpg"):
        Image.effect_noise((800, 400), 50).save(folder / name)
    (folder / "none.png").write_text("this is no picture")
    tasks = make.enqueue(client, make.pictures(folder, small))

    with started("thumbnails", dsn, tmp_path):
        ended = [client.wait(task, timeout=20) for task in tasks]

    assert [task.state for task in ended] == [State.SUCCEEDED, State.SUCCEEDED, State.DEAD]
    sizes = {path.name: Image.open(path).size for path in small.iterdir()}
    assert sizes == {"a.png.png": (256, 128), "b.jpg.png": (256, 128)}


# -- simulation


def test_part_whose_worker_is_killed_gives_the_numbers_that_it_would_have_given(
    dsn: str, client: Client, tmp_path: Path
) -> None:
    # A second or two of work, so that it can be killed in the middle.
    part = Part(paths=20_000_000)
    (task,) = study.enqueue(client, [part], "study")

    with started("simulation", dsn, tmp_path) as node:
        pid = eventually(lambda: [one.pid for one in client.get(task).attempts])[0]
        os.kill(pid, signal.SIGKILL)
        found = client.result(task, timeout=60)
        assert node.events("attempt.crashed")

    ctx: Context[None] = Context(task_id=task.id, type=task.type)
    alone = simulation.simulate_part(ctx, part)
    assert found == Moments(**{name: value.item() for name, value in alone.items()})
    assert outcomes(client, task.id) == ["crashed", "succeeded"]


def test_study_of_many_parts_gives_the_price_of_the_closed_form(
    dsn: str, client: Client, tmp_path: Path
) -> None:
    tasks = study.enqueue(client, study.parts(400_000, 40, seed=1), "study")

    with started("simulation", dsn, tmp_path):
        total = study.gathered(client.result(task, timeout=30) for task in tasks)

    distance = abs(total.mean - study.closed_form(Part(paths=1)))
    assert total.n == 400_000
    assert distance < 4 * study.standard_error(total)


# -- webapp


def test_order_placed_on_the_page_shows_its_invoice_once_the_task_has_ended(
    dsn: str, client: Client, tmp_path: Path
) -> None:
    browser = create_app(engine_of(dsn), client).test_client()

    with started("webapp", dsn, tmp_path):
        placed = browser.post("/orders", data={"customer": "Ada <b>", "prices": "2.50, 4"})
        eventually(lambda: "succeeded" in browser.get(placed.location).text)
    page = browser.get(placed.location).text

    assert "Invoice 1: 6.50\n  and 1.30 tax." in page
    assert "7.80 to pay" in page
    assert "Ada &lt;b&gt;" in page
    assert "refresh" not in page


def test_invoices_are_numbered_without_gaps_though_workers_are_killed(
    dsn: str, client: Client, session: Session, tmp_path: Path
) -> None:
    engine = engine_of(dsn)
    make_tables(engine)
    for customer in range(40):
        place_order(engine, client, str(customer), [100] if customer % 4 else [])

    with started("webapp", dsn, tmp_path) as node:
        for pid in node.workers().values():
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: all(task.state.is_end for task in client.tasks()), timeout=30)

    numbers = [number for (number,) in rows(session, "select number from public.invoices")]
    assert sorted(numbers) == list(range(1, 31))
    results = {task.result["number"] for task in client.tasks(state="succeeded")}
    assert results == set(numbers)


def test_order_without_prices_shows_why_it_has_no_invoice(
    dsn: str, client: Client, tmp_path: Path
) -> None:
    browser = create_app(engine_of(dsn), client).test_client()
    placed = browser.post("/orders", data={"customer": "Ada", "prices": ""})
    before = browser.get(placed.location).text

    with started("webapp", dsn, tmp_path):
        eventually(lambda: "dead" in browser.get(placed.location).text)

    assert "<b>ready</b>" in before
    assert "refresh" in before
    assert "order 1 has no items" in browser.get(placed.location).text


def test_order_that_the_table_refuses_leaves_no_task_either(
    dsn: str, client: Client, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = create_app(engine_of(dsn), client).test_client()
    # The table's rule is checked at the commit, when the task is already written.
    rows(session, "alter table public.orders drop constraint customer_is_named")
    rows(session, REFUSED_AT_COMMIT)

    refused = browser.post("/orders", data={"customer": "nobody", "prices": "1"})
    accepted = browser.post("/orders", data={"customer": "Ada", "prices": "1"})

    assert (refused.status_code, accepted.status_code) == (400, 303)
    assert [task.payload["customer"] for task in client.tasks()] == ["Ada"]


REFUSED_AT_COMMIT = """
create function public.refuse() returns trigger language plpgsql as $$
begin
  if new.customer = 'nobody' then
    raise exception 'refused' using errcode = 'check_violation';
  end if;
  return new;
end $$;
create constraint trigger refuse after insert on public.orders
  deferrable initially deferred for each row execute function public.refuse();
"""


def test_task_that_retention_has_removed_is_missing_on_the_page_and_no_error(
    dsn: str, client: Client, session: Session
) -> None:
    browser = create_app(engine_of(dsn), client).test_client()
    placed = browser.post("/orders", data={"customer": "Ada", "prices": "1"})
    rows(session, "update public.orders set task_id = 4711")

    page = browser.get(placed.location)

    assert page.status_code == 200
    assert "removed by retention" in page.text
    assert browser.get("/orders/4711").status_code == 404
