"""The application's own tables, in the same database as the tasks."""

from __future__ import annotations

from sqlalchemy import ARRAY, BigInteger, CheckConstraint, ForeignKey, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship


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
    invoice: Mapped[InvoiceOfOrder | None] = relationship(lazy="joined")


class InvoiceOfOrder(Base):
    """One invoice, written by the handler."""

    __tablename__ = "invoices"

    number: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    order_id: Mapped[int] = mapped_column(ForeignKey(Order.id), unique=True)
    net_cents: Mapped[int] = mapped_column(BigInteger)
    tax_cents: Mapped[int] = mapped_column(BigInteger)


class Counter(Base):
    """One row: how many invoices there are."""

    __tablename__ = "counter"

    id: Mapped[int] = mapped_column(primary_key=True)
    invoices: Mapped[int] = mapped_column(BigInteger)
