"""What the web application and the workers have in common: the invoice of an order as a task.

Light on purpose: importing it loads neither Flask nor SQLAlchemy nor a handler.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator import TaskType


@dataclass(frozen=True)
class Ordered:
    """What the invoice is about. `cents` are the prices of the items."""

    order_id: int
    customer: str
    cents: list[int]


@dataclass(frozen=True)
class Invoice:
    """The result. The sum includes the tax; numbers have no gaps."""

    number: int
    net_cents: int
    tax_cents: int
    sum_cents: int


invoice = TaskType("order:invoice", Ordered, Invoice, queue="orders")
