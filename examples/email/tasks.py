"""What the program that sends and the workers have in common: one e-mail as a task.

Light on purpose: importing it loads neither handlers nor a database driver.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator import TaskType


@dataclass(frozen=True)
class Message:
    """One e-mail to one recipient: what is refused for one is then not refused for all."""

    to: str
    subject: str
    text: str


@dataclass(frozen=True)
class Sent:
    """What the mail server took over, by the Message-ID that the recipient sees."""

    message_id: str


send = TaskType("email:send", Message, Sent, queue="email")
