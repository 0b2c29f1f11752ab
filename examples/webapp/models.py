"""The application's own table, in the same database as the tasks."""

from __future__ import annotations

from sqlalchemy import ARRAY, BigInteger, CheckConstraint, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """What the tables of this application are declared on."""


class Order(Base):
    """One order. `task_id` is the task that makes its invoice."""

    __tablename__ = "orders"
    __table_args__ = (CheckConstraint("customer <> ''", name="customer_is_named"),)

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    customer: Mapped[str] = mapped_column(Text)
    cents: Mapped[list[int]] = mapped_column(ARRAY(BigInteger))
    task_id: Mapped[int | None] = mapped_column(BigInteger)
