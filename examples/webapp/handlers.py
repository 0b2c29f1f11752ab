"""The handler: makes the invoice of one order. Imported by workers only."""

from __future__ import annotations

from examples.webapp.tasks import Invoice, Ordered, invoice
from orchestrator import Context, Dead, Mux, Retry

mux = Mux()

TAX_PERCENT = 20


@mux.handler(invoice, retry=Retry(max_attempts=5, base="1s"), timeout="1m")
def make_invoice(ctx: Context[None], payload: Ordered) -> Invoice:
    """Work out the sums. An order without items has no invoice."""
    if not payload.cents:
        raise Dead(f"order {payload.order_id} has no items")
    net = sum(payload.cents)
    tax = (net * TAX_PERCENT + 50) // 100
    ctx.log.info("invoice.made", order_id=payload.order_id)
    return Invoice(
        # Of the order and not of the attempt: one that is run again gives the same number.
        number=f"R-{payload.order_id:06}",
        net_cents=net,
        tax_cents=tax,
        sum_cents=net + tax,
    )
