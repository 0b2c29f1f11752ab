"""The example: which answer of a mail server leads to what, and what the e-mail looks like."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from examples.email import handlers
from examples.email.handlers import Relay, message_id_of
from examples.email.mailserver import Answer, MailServer
from examples.email.tasks import Message, Sent
from orchestrator import Context, Dead, RetryAfter

MESSAGE = Message("ada@example.org", "Your order 17", "It is on its way.\n.\nThanks")


@contextmanager
def serving(answer: Answer | None = None) -> Iterator[MailServer]:
    with MailServer(answer=answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def answering(command: str, answer: str | None) -> Answer:
    """Say `answer` to one command and yes to the others."""
    return lambda got, argument: answer if got == command else "250 ok"


def sent(port: int, message: Message = MESSAGE, **fields: int) -> Sent:
    relay = Relay(host="127.0.0.1", port=port, sender="shop@example.org")
    ctx = Context(task_id=fields.pop("task_id", 17), type="email:send", state=relay, **fields)
    return handlers.send_message(ctx, message)


def test_message_arrives_as_it_was_written() -> None:
    with serving() as server:
        sent(server.port)

    (received,) = server.received
    assert received.to == "ada@example.org"
    assert received.email["Subject"] == "Your order 17"
    assert received.email.get_content().splitlines() == MESSAGE.text.splitlines()


def test_each_attempt_has_the_message_id_that_the_result_names() -> None:
    with serving() as server:
        results = [sent(server.port, attempt=attempt) for attempt in (1, 2)]

    ids = {str(received.email["Message-ID"]) for received in server.received}
    assert ids == {result.message_id for result in results}
    assert len(ids) == 1


def test_other_task_and_other_content_have_other_message_ids() -> None:
    other = Message("ada@example.org", "Your order 18", "")

    ids = {message_id_of(1, MESSAGE, "d"), message_id_of(2, MESSAGE, "d")}
    ids |= {message_id_of(1, other, "d")}

    assert len(ids) == 3


@pytest.mark.parametrize("command", ["MAIL", "RCPT", "DATA"])
def test_permanent_answer_is_dead_with_what_the_server_said(command: str) -> None:
    with serving(answering(command, "550 no such user")) as server:
        with pytest.raises(Dead, match=r"ada@example.org: .* 550 no such user"):
            sent(server.port)

    assert server.received == []


@pytest.mark.parametrize("command", ["MAIL", "RCPT", "DATA"])
def test_temporary_answer_is_an_ordinary_failure(command: str) -> None:
    with serving(answering(command, "452 disk full")) as server:
        with pytest.raises(RuntimeError, match="452 disk full"):
            sent(server.port)


def test_greylisting_is_given_its_time() -> None:
    with serving(answering("RCPT", "450 come back later")) as server:
        with pytest.raises(RetryAfter, match="450") as caught:
            sent(server.port)

    assert caught.value.delay == "1m"


@pytest.mark.parametrize("command", ["MAIL", "RCPT", "DATA"])
def test_server_that_hangs_up_is_no_verdict_on_the_message(command: str) -> None:
    with serving(answering(command, None)) as server:
        with pytest.raises(OSError):
            sent(server.port)


def test_server_that_is_not_there_is_tried_again() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(OSError):
            sent(unused.getsockname()[1])


def test_error_in_the_farewell_does_not_undo_what_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MailServer, "farewell", "421 too busy to say bye")
    with serving() as server:
        sent(server.port)

    assert len(server.received) == 1


@pytest.mark.parametrize(
    "message",
    [
        Message("ada@example.org", "two\nBcc: everybody@example.org", ""),
        Message("ada@example.org\nBcc: everybody@example.org", "one", ""),
        Message("", "to nobody", ""),
        Message("ada@example.org, bob@example.org", "to two", ""),
    ],
)
def test_what_is_no_email_is_dead_and_not_sent(message: Message) -> None:
    with serving() as server:
        with pytest.raises(Dead):
            sent(server.port, message)

    assert server.received == []
