"""The handler: hands one e-mail to the mail server. Imported by workers only.

Which error means what:

    4xx, no connection, a lost connection, a time limit   temporary: again after a back-off
    421, 450, 451 (busy, greylisted)                      the same, but not sooner than a minute
    5xx about this message or recipient                   permanent: dead at once
    a refused login or greeting                           about us, not about the message: again
    no e-mail at all (a line break in the subject)        dead at once

SMTP knows no "once": when the worker dies, or the connection is cut, after the server has taken the
message and before that is on record, the message is sent again. It then has the same Message-ID,
by which mail systems recognise a copy.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import smtplib
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import EmailMessage
from email.utils import formatdate

from examples.email.tasks import Message, Sent, send
from orchestrator import Context, Dead, Mux, Retry, RetryAfter

mux = Mux()

_ASKED_TO_WAIT = (421, 450, 451)
# Of one step of the dialogue. All of them together stay below the time limit of the attempt.
_ANSWER_SECONDS = 20.0


@dataclass(frozen=True)
class Relay:
    """The mail server that takes our messages, and the address that they come from."""

    host: str
    port: int
    sender: str
    user: str = ""
    password: str = ""

    @property
    def domain(self) -> str:
        return self.sender.rpartition("@")[2]


@mux.lifespan
def relay() -> Iterator[Relay]:
    """Read the settings, once per worker; connections are opened per message, none idles."""
    yield Relay(
        host=os.environ.get("SMTP_HOST", "127.0.0.1"),
        port=int(os.environ.get("SMTP_PORT", "2525")),
        sender=os.environ.get("SMTP_FROM", "orchestrator@localhost"),
        user=os.environ.get("SMTP_USER", ""),
        password=os.environ.get("SMTP_PASSWORD", ""),
    )


@mux.handler(send, retry=Retry(max_attempts=12, base="10s", cap="1h"), timeout="2m")
def send_message(ctx: Context[Relay], payload: Message) -> Sent:
    """Hand the message to the mail server, which then answers for its delivery."""
    message_id = message_id_of(ctx.task_id, payload, ctx.state.domain)
    email = _composed(payload, ctx.state, message_id)
    try:
        _hand_over(email, ctx.state)
    except smtplib.SMTPRecipientsRefused as error:
        # One recipient, so one answer.
        code, text = next(iter(error.recipients.values()))
        raise _judged(code, text, payload) from error
    except (smtplib.SMTPSenderRefused, smtplib.SMTPDataError) as error:
        raise _judged(error.smtp_code, error.smtp_error, payload) from error
    ctx.log.info("email.sent", to=payload.to, message_id=message_id)
    return Sent(message_id=message_id)


def message_id_of(task_id: int, payload: Message, domain: str) -> str:
    """Return the Message-ID: the same for every attempt of a task, another for everything else.

    The content is part of it, because a new database begins to count its tasks anew.
    """
    seed = "\0".join([str(task_id), payload.to, payload.subject, payload.text])
    return f"<{hashlib.sha256(seed.encode()).hexdigest()[:32]}@{domain}>"


def _composed(payload: Message, relay: Relay, message_id: str) -> EmailMessage:
    email = EmailMessage()
    try:
        email["From"] = relay.sender
        email["To"] = payload.to
        email["Subject"] = payload.subject
    except (ValueError, IndexError) as error:
        # Line breaks, or what cannot be an address. The next attempt would find the same.
        raise Dead(f"this is no e-mail: {error}") from error
    if [bool(one.username and one.domain) for one in email["To"].addresses] != [True]:
        raise Dead(f"to = {payload.to!r}: must be one address, name@domain")
    email["Message-ID"] = message_id
    email["Date"] = formatdate()
    email.set_content(payload.text)
    return email


def _hand_over(email: EmailMessage, relay: Relay) -> None:
    server = smtplib.SMTP(relay.host, relay.port, timeout=_ANSWER_SECONDS)
    try:
        if relay.user:
            server.starttls(context=ssl.create_default_context())
            server.login(relay.user, relay.password)
        try:
            server.send_message(email)
        except smtplib.SMTPNotSupportedError as error:
            raise Dead(f"{email['To']}: the mail server cannot take this: {error}") from error
        # The server has it. An error in the farewell must not have it sent again.
        with contextlib.suppress(smtplib.SMTPException, OSError):
            server.quit()
    finally:
        server.close()


def _judged(code: int, text: bytes | str, payload: Message) -> Exception:
    """Return what the handler raises for an answer of the server."""
    said = text.decode(errors="replace") if isinstance(text, bytes) else text
    reason = f"{payload.to}: the mail server says {code} {said}"
    if code >= 500:
        return Dead(reason)
    if code in _ASKED_TO_WAIT:
        return RetryAfter("1m", reason)
    return RuntimeError(reason)
