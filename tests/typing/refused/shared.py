"""Task types with mistakes in them, and some without for the other files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypedDict

import msgspec

from orchestrator import Retry, TaskType


@dataclass
class Resize:
    url: str
    width: int = 800


class Mail(TypedDict):
    to: str
    subject: str


class Order(msgspec.Struct):
    items: list[float]


class Total(msgspec.Struct):
    amount: float


resize = TaskType("image:resize", Resize, dict[str, int])
send = TaskType("mail:send", Mail)
total = TaskType("order:total", Order, Total)
anything = TaskType("any:thing", dict[str, Any])

TaskType("instance", Resize("a.png"))  # error: mypy, pyright
TaskType("misspelt", Resize, que="cpu")  # error: mypy, pyright
TaskType("priority", Resize, priority="high")  # error: mypy, pyright
TaskType(Resize, Resize)  # error: mypy, pyright
Retry(attempts=3)  # error: mypy, pyright
Retry(dead_on=ValueError)  # error: mypy, pyright
