"""Enqueues that the types refuse, and results that are taken for what they are not."""

from __future__ import annotations

from datetime import datetime

from shared import Order, Resize, Total, resize, send, total

from orchestrator import AsyncClient, Client, Task

client = Client("postgresql://localhost/app")

client.enqueue(resize, Order([]))  # error: mypy, pyright
client.enqueue(resize, {"url": "a.png"})  # error: mypy, pyright
client.enqueue(send, {"to": "a"})  # error: mypy, pyright
client.enqueue(send, {"to": "a", "subject": 5})  # error: mypy, pyright
client.enqueue(total)  # error: mypy, pyright
client.enqueue(total, Order)  # error: mypy, pyright
client.enqueue(5, Order([]))  # error: mypy, pyright

client.enqueue(total, Order([]), prio=5)  # error: mypy, pyright
client.enqueue(total, Order([]), priority="high")  # error: mypy, pyright
client.enqueue(total, Order([]), run_at="tomorrow")  # error: mypy, pyright
client.enqueue(total, Order([]), delay=datetime.now())  # error: mypy, pyright
client.enqueue(total, Order([]), tags=5)  # error: mypy, pyright
client.enqueue("plain:text", 5, prio=5)  # error: mypy, pyright
client.enqueue("plain:text", 5, idempotency_key=5)  # error: mypy, pyright

client.enqueue_many(total, [Resize("a")])  # error: mypy, pyright
client.enqueue_many(send, [{"to": "a"}])  # error: mypy, pyright
client.enqueue_many(total, Order([]))  # error: mypy, pyright
client.enqueue_many(total, [Order([])], idempotency_key="a")  # error: mypy, pyright
client.enqueue_many("plain:text", [1], prio=5)  # error: mypy, pyright

task = client.enqueue(total, Order([1.0]))
other: Task[Resize] = task  # error: mypy, pyright
number: float = client.result(task)  # error: mypy, pyright
task.result.amount  # error: mypy, pyright
client.result(task).total  # error: mypy, pyright
client.result("5")  # error: mypy, pyright
client.get(total)  # error: mypy, pyright
client.wait(task, time=5)  # error: mypy, pyright
right: Total = client.result(task)
Client("postgresql://localhost/app", pool=4)  # error: mypy, pyright


async def awaited(client: AsyncClient) -> None:
    await client.enqueue(resize, Order([]))  # error: mypy, pyright
    await client.enqueue(total, Order([]), prio=5)  # error: mypy, pyright
    await client.enqueue_many(total, [Resize("a")])  # error: mypy, pyright
    task = await client.enqueue(total, Order([1.0]))
    number: float = await client.result(task)  # error: mypy, pyright
    right: Total = client.result(task)  # error: mypy, pyright
    assert number, right
