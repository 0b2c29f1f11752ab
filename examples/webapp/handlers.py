"""The handler: makes the invoice of one order. Imported by workers only.

Invoices are numbered without gaps, and no order has two. A sequence of the database would leave a
gap for every attempt that fails after it. So the number is counted up, and the invoice written, on
the connection that the worker commits together with the success: exactly once, or not at all.
"""

from __future__ import annotations

from examples.webapp.tasks import Invoice, Ordered, invoice
from orchestrator import Context, Dead, Mux, Retry

mux = Mux()

TAX_PERCENT = 20

_NEXT_NUMBER = "update public.counter set invoices = invoices + 1 returning invoices"
_WRITE = """
    insert into public.invoices (number, order_id, net_cents, tax_cents)
    values (%(number)s, %(order_id)s, %(net)s, %(tax)s)
"""


@mux.handler(invoice, retry=Retry(max_attempts=5, base="1s"), timeout="1m")
def make_invoice(ctx: Context[None], payload: Ordered) -> Invoice:
    """Work out the sums and write the invoice. An order without items has none."""
    net, tax = worked_out(payload)
    with ctx.connection().cursor() as cursor:
        # The row is locked until the worker commits, so this comes last.
        cursor.execute(_NEXT_NUMBER)
        (number,) = cursor.fetchone()
        cursor.execute(
            _WRITE, {"number": number, "order_id": payload.order_id, "net": net, "tax": tax}
        )
    ctx.log.info("invoice.made", order_id=payload.order_id, number=number)
    return Invoice(number=number, net_cents=net, tax_cents=tax, sum_cents=net + tax)


def worked_out(payload: Ordered) -> tuple[int, int]:
    """Return net sum and tax in cents."""
    if not payload.cents:
        raise Dead(f"order {payload.order_id} has no items")
    net = sum(payload.cents)
    return net, (net * TAX_PERCENT + 50) // 100
