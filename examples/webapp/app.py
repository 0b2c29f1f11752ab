"""The web application: takes orders, and shows what became of them.

An order and the task that makes its invoice are written in one transaction: there is no order
without a task and no task without an order, whatever fails in between.

    python -m examples.webapp.app            # http://127.0.0.1:5000
"""

from __future__ import annotations

import sys
from typing import Any

import psycopg2
from flask import Flask, abort, redirect, render_template, request, url_for
from sqlalchemy import Engine, create_engine, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from werkzeug.wrappers import Response

from examples.webapp.models import Base, Counter, Order
from examples.webapp.tasks import Ordered, invoice
from orchestrator import Client, Task, TaskNotFound, config
from orchestrator.db import embedded


def engine_of(url: str) -> Engine:
    """Make an engine for a libpq URL, that of the embedded server too."""
    return create_engine("postgresql+psycopg2://", creator=lambda: psycopg2.connect(url))


def create_app(engine: Engine, client: Client) -> Flask:
    """Make the application; its tables are made where they are missing."""
    app = Flask(__name__)
    make_tables(engine)

    @app.get("/")
    def orders() -> str:
        with Session(engine) as session:
            found = list(session.scalars(select(Order).order_by(Order.id.desc()).limit(50)))
        return render_template("orders.html", orders=found)

    @app.post("/orders")
    def order() -> Response:
        try:
            cents = _cents(request.form.get("prices", ""))
        except ValueError:
            abort(400, "prices are numbers with a comma between them, such as 2.50, 4")
        try:
            order_id = place_order(engine, client, request.form.get("customer", ""), cents)
        except IntegrityError:
            abort(400, "an order needs the name of the customer")
        return redirect(url_for("show", order_id=order_id), code=303)

    @app.get("/orders/<int:order_id>")
    def show(order_id: int) -> str:
        with Session(engine) as session:
            found = session.get(Order, order_id)
        if found is None:
            abort(404)
        return render_template("order.html", order=found, task=_task(client, found))

    app.jinja_env.filters["money"] = lambda cents: f"{cents / 100:.2f}"
    return app


def make_tables(engine: Engine) -> None:
    """Make the tables that are missing, and the row that counts the invoices."""
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        session.execute(insert(Counter).values(id=1, invoices=0).on_conflict_do_nothing())


def place_order(engine: Engine, client: Client, customer: str, cents: list[int]) -> int:
    """Write an order and its task, both or neither; return the order's id.

    Raises:
        IntegrityError: the table refuses the order.
    """
    with Session(engine) as session, session.begin():
        order = Order(customer=customer, cents=cents)
        session.add(order)
        session.flush()  # gives it its id
        task = client.enqueue(
            invoice,
            Ordered(order.id, customer, cents),
            idempotency_key=f"invoice-{order.id}",
            conn=session,
        )
        order.task_id = task.id
        # After the commit a sleeping worker is woken.
        return order.id


def _cents(text: str) -> list[int]:
    return [round(float(price) * 100) for price in text.split(",") if price.strip()]


def _task(client: Client, order: Order) -> Task[Any] | None:
    """Return the task of an order; None once retention has removed it."""
    if order.task_id is None:
        return None
    try:
        return client.get(order.task_id)
    except TaskNotFound:
        return None


def main() -> int:
    """Serve the application on the database of the daemon's configuration."""
    engine = engine_of(embedded.resolve(config.load()))
    with Client.from_config() as client:
        create_app(engine, client).run(port=int(sys.argv[1]) if len(sys.argv) > 1 else 5000)
    return 0


if __name__ == "__main__":
    sys.exit(main())
