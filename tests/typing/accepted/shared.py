"""Task types with every kind of payload, as a web application and its workers share them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypedDict

import msgspec

from orchestrator import TaskType


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


resize = TaskType("image:resize", Resize, dict[str, int], queue="cpu")
send = TaskType("mail:send", Mail, priority=10)
total = TaskType("order:total", Order, Total, ttl="1h")
anything = TaskType("any:thing", dict[str, Any], int)
