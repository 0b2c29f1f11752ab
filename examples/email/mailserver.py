"""A mail server to try with: takes every message and prints it. It delivers nothing.

    python -m examples.email.mailserver

`MailServer` is what the tests run, with answers of their choice in place of "accepted".
"""

from __future__ import annotations

import os
import socketserver
from collections.abc import Callable
from dataclasses import dataclass
from email import message_from_bytes, policy
from email.message import EmailMessage

# What is answered to a command: one line, with its code. None hangs up without an answer.
Answer = Callable[[str, str], str | None]


@dataclass(frozen=True)
class Received:
    """One message as it came, with the recipient of the envelope."""

    to: str
    email: EmailMessage


class MailServer(socketserver.ThreadingTCPServer):
    """Takes messages at 127.0.0.1. Run `serve_forever`, in a thread or not.

    `answer` is asked for MAIL, RCPT and the end of DATA, with the command and its argument (for
    DATA the Message-ID). A message counts as received once the answer is 2xx, and also when the
    server hangs up then: the client cannot know.
    """

    allow_reuse_address = True
    daemon_threads = True
    farewell = "221 bye"

    def __init__(self, port: int = 0, answer: Answer | None = None) -> None:
        super().__init__(("127.0.0.1", port), _Dialogue)
        self.answer: Answer = answer if answer is not None else lambda command, argument: "250 ok"
        self.received: list[Received] = []
        self.on_message: Callable[[Received], None] = lambda message: None

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class _Dialogue(socketserver.StreamRequestHandler):
    """One connection. RFC 5321, as much of it as a client needs that sends one message."""

    server: MailServer

    def handle(self) -> None:
        self._to = ""
        self._say("220 here")
        while line := self.rfile.readline():
            command, _, argument = line.decode("utf-8", "replace").strip().partition(" ")
            answer = self._answered(command.upper(), argument)
            if answer is None:
                return
            self._say(answer)
            if command.upper() == "QUIT":
                return

    def _answered(self, command: str, argument: str) -> str | None:
        match command:
            case "EHLO" | "HELO":
                return "250 here"
            case "MAIL":
                return self.server.answer(command, argument)
            case "RCPT":
                self._to = argument.partition("<")[2].partition(">")[0]
                return self.server.answer(command, self._to)
            case "DATA":
                self._say("354 go on")
                return self._take()
            case "RSET" | "NOOP":
                return "250 ok"
            case "QUIT":
                return self.server.farewell
            case _:
                return "502 not here"

    def _take(self) -> str | None:
        lines = []
        while (line := self.rfile.readline()) not in (b".\r\n", b""):
            lines.append(line.removeprefix(b"."))
        email = message_from_bytes(b"".join(lines), policy=policy.default)
        assert isinstance(email, EmailMessage)
        answer = self.server.answer("DATA", str(email["Message-ID"]))
        if answer is None or answer.startswith("2"):
            received = Received(self._to, email)
            self.server.received.append(received)
            self.server.on_message(received)
        return answer

    def _say(self, line: str) -> None:
        self.wfile.write(f"{line}\r\n".encode())


def show(received: Received) -> None:
    """Print a message."""
    print(f"--- to {received.to}\n{received.email}", flush=True)


def main() -> None:
    """Serve until interrupted."""
    port = int(os.environ.get("SMTP_PORT", "2525"))
    with MailServer(port) as server:
        server.on_message = show
        print(f"a mail server that delivers nothing, at 127.0.0.1:{server.port}", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
