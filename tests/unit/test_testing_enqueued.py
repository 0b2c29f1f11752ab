"""`capture` and `assert_enqueued`: what a program enqueues is tested without PostgreSQL."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any
from unittest.mock import ANY

import pytest

from orchestrator import AsyncClient, Client, Context, Mux, PayloadError, State, TaskType
from orchestrator.testing import (
    assert_enqueued,
    assert_not_enqueued,
    capture,
    context,
    run,
)


@dataclass
class Mail:
    to: str
    subject: str = "hello"


mail = TaskType("email:send", Mail, queue="mail", priority=3, ttl="1h")


@pytest.fixture
def client() -> Client:
    """A client whose database is not there."""
    return Client("postgresql://nobody@127.0.0.1:1/nowhere")


# -- capture


def test_captured_tasks_are_not_sent(client: Client) -> None:
    with capture(client) as tasks:
        task = client.enqueue(mail, Mail("a@example.org"), tags=["x"], headers={"h": 1})

    assert tasks == [task]
    assert (task.type, task.queue, task.priority) == ("email:send", "mail", 3)
    assert task.payload == {"to": "a@example.org", "subject": "hello"}
    assert (task.tags, task.headers, task.state) == (("x",), {"h": 1}, State.READY)


def test_a_connection_of_the_caller_is_not_needed(client: Client) -> None:
    with capture(client) as tasks:
        client.enqueue("a", conn=object())
        client.enqueue_many("a", [1, 2], conn=object())
        client.ring()

    assert [task.payload for task in tasks] == [None, 1, 2]


def test_many_are_captured_with_their_keys_and_progress(client: Client) -> None:
    told: list[tuple[int, int]] = []

    with capture(client) as tasks:
        client.enqueue_many(
            "a", [1, 2], idempotency_keys=["k1", None], on_progress=lambda *n: told.append(n)
        )

    assert [task.idempotency_key for task in tasks] == ["k1", None]
    assert told == [(2, 2)]


def test_what_enqueue_refuses_is_refused(client: Client) -> None:
    with capture(client) as tasks:
        with pytest.raises(PayloadError, match=r"payload\.to"):
            client.enqueue(mail, {"to": 5})
        with pytest.raises(PayloadError, match="priority"):
            client.enqueue("a", priority=10**6)
        with pytest.raises(PayloadError, match="limit"):
            client.enqueue("a", "x" * 300_000)
        with pytest.raises(PayloadError, match="idempotency_keys"):
            client.enqueue_many("a", [1], idempotency_key="k")

    assert tasks == []


def test_a_key_that_is_used_twice_gives_the_first_task(client: Client) -> None:
    with capture(client) as tasks:
        first = client.enqueue("a", 1, idempotency_key="k")
        second = client.enqueue("a", 2, idempotency_key="k")
        elsewhere = client.enqueue("a", 3, idempotency_key="k", queue="other")

    assert (first.existing, second.existing, elsewhere.existing) == (False, True, False)
    assert second.id == first.id
    assert len(tasks) == 2


def test_after_the_block_the_client_sends_again(client: Client) -> None:
    before = client.enqueue

    with pytest.raises(ZeroDivisionError), capture(client):
        raise ZeroDivisionError

    assert client.enqueue == before


def test_captures_nest(client: Client) -> None:
    with capture(client) as outer:
        client.enqueue("a")
        with capture(client) as inner:
            client.enqueue("b")
        client.enqueue("c")

    assert [task.type for task in outer] == ["a", "c"]
    assert [task.type for task in inner] == ["b"]


async def _enqueue_all(client: Any) -> None:
    await client.enqueue("a", 1)
    await client.enqueue_many("b", [2, 3])
    await client.ring()


def test_an_async_client_is_captured_too() -> None:
    client = AsyncClient("postgresql://nobody@127.0.0.1:1/nowhere")

    with capture(client) as tasks:
        asyncio.run(_enqueue_all(client))

    assert [task.payload for task in tasks] == [1, 2, 3]


# -- assert_enqueued


def test_the_task_is_found_and_returned(client: Client) -> None:
    with capture(client):
        task = client.enqueue(mail, Mail("a@example.org"))

        found = assert_enqueued(mail, payload=Mail("a@example.org"))

    assert found is task


@pytest.mark.parametrize(
    "payload",
    [
        {"to": "a@example.org", "subject": "hello"},
        {"to": ANY, "subject": "hello"},
        Mail("a@example.org"),
        lambda payload: payload["to"].endswith("example.org"),
    ],
)
def test_payloads_are_compared_as_json_or_by_a_function(client: Client, payload: Any) -> None:
    with capture(client):
        client.enqueue(mail, Mail("a@example.org"))

        assert_enqueued("email:send", payload=payload)


@pytest.mark.parametrize("payload", [{"a": True}, {"a": 2}, {}, {"a": 1, "b": 1}, [1], None])
def test_a_payload_that_differs_is_another(client: Client, payload: Any) -> None:
    with capture(client):
        client.enqueue("a", {"a": 1})

        assert_not_enqueued("a", payload=payload)
        with pytest.raises(AssertionError, match="was not enqueued"):
            assert_enqueued("a", payload=payload)


def test_options_are_compared_as_enqueue_reads_them(client: Client) -> None:
    with capture(client):
        client.enqueue("a", delay="2m", timeout=60, tags=["x"], queue="q", headers={"h": 1})

        assert_enqueued("a", delay=120, timeout="1m", tags=("x",), queue="q", headers={"h": 1})
        assert_not_enqueued("a", delay=121)


def test_the_message_shows_the_nearest_task_and_the_path_of_what_differs(client: Client) -> None:
    with capture(client):
        client.enqueue("a", {"user": {"id": 1}, "n": 1}, priority=2)
        client.enqueue("a", {"user": {"id": 9}, "n": 5}, priority=2)
        client.enqueue("b", "other")

        with pytest.raises(AssertionError) as caught:
            assert_enqueued("a", payload={"user": {"id": 1}, "n": 2}, priority=2)

    lines = str(caught.value).splitlines()
    assert lines[2] == "  task 1: payload.n is 1, expected 2"
    assert "payload.user.id is 9, expected 1" in lines[3]
    assert "b  'other'" in str(caught.value)


def test_the_message_proposes_a_type_of_a_similar_name(client: Client) -> None:
    with capture(client):
        client.enqueue("email:send")

        with pytest.raises(AssertionError, match="did you mean 'email:send'"):
            assert_enqueued("email:sent")


def test_the_message_says_that_nothing_was_enqueued(client: Client) -> None:
    with capture(client), pytest.raises(AssertionError, match="nothing was enqueued at all"):
        assert_enqueued("a")


def test_the_number_of_tasks_can_be_asserted(client: Client) -> None:
    with capture(client):
        client.enqueue_many("a", [1, 1, 2])

        assert_enqueued("a", payload=1, times=2)
        with pytest.raises(AssertionError, match="2 times, expected 1"):
            assert_enqueued("a", payload=1, times=1)


def test_a_task_that_should_not_be_there_is_shown(client: Client) -> None:
    with capture(client):
        client.enqueue("a", {"x": 1})

        with pytest.raises(AssertionError, match=r"(?s)enqueued all the same.*\{'x': 1\}"):
            assert_not_enqueued("a")


def test_without_a_capture_there_is_an_error_that_says_what_to_do(client: Client) -> None:
    with pytest.raises(RuntimeError, match="within="):
        assert_enqueued("a")


def test_captured_tasks_contexts_and_outcomes_can_be_looked_through(client: Client) -> None:
    def handler(ctx: Context[Any], payload: Any) -> None:
        ctx.enqueue("a", payload)

    mux = Mux()
    mux.handle("h", handler)
    ctx = context()
    with capture(client) as tasks:
        client.enqueue("a", 1)

    handler(ctx, 2)
    outcomes = [run(mux, "h", 3), run(mux, "h", 4)]

    assert_enqueued("a", payload=1, within=tasks)
    assert_enqueued("a", payload=2, within=ctx)
    assert_enqueued("a", payload=3, within=outcomes[0])
    assert_enqueued("a", payload=4, within=outcomes)
    assert_not_enqueued("a", payload=1, within=outcomes)


def test_the_database_of_an_async_client_is_not_read() -> None:
    with pytest.raises(TypeError, match="give a Client of the same database"):
        assert_enqueued("a", within=AsyncClient("postgresql://nobody@127.0.0.1:1/nowhere"))


@pytest.mark.parametrize("within", ["a", b"a", 5], ids=repr)
def test_what_cannot_be_looked_through_is_refused(within: Any) -> None:
    with pytest.raises(TypeError, match="within = "):
        assert_enqueued("a", within=within)


def test_a_class_for_a_payload_is_refused(client: Client) -> None:
    with capture(client), pytest.raises(TypeError, match="give an instance"):
        assert_enqueued(mail, payload=Mail)


def test_a_misspelt_option_is_named_with_those_that_there_are(client: Client) -> None:
    with capture(client), pytest.raises(TypeError, match=r"assert_enqueued\(\).*'prio'.*priority"):
        assert_enqueued("a", prio=1)


@pytest.mark.parametrize("wrong", [None, Client, 5], ids=repr)
def test_what_is_no_client_cannot_be_captured(wrong: Any) -> None:
    with pytest.raises(TypeError, match="must be the Client"), capture(wrong):
        pass


@pytest.mark.parametrize("payloads", [{"a": 1}, "abc", 5], ids=repr)
def test_a_capture_does_not_take_one_payload_for_many(client: Client, payloads: Any) -> None:
    with capture(client), pytest.raises(PayloadError, match="one payload per task"):
        client.enqueue_many("a", payloads)


def test_a_capture_does_not_take_a_text_for_keys(client: Client) -> None:
    with capture(client), pytest.raises(PayloadError, match="a list with one key per payload"):
        client.enqueue_many("a", [1, 2], idempotency_keys="ab")
