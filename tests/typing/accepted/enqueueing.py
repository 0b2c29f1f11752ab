"""Programs that enqueue and wait; the types of the results follow from the task types."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, assert_type

from shared import Order, Resize, Total, resize, send, total

from orchestrator import AsyncClient, Client, State, Task, TaskType

client = Client("postgresql://localhost/app")

task = client.enqueue(total, Order([1.0]), priority=3, delay=timedelta(seconds=5), tags=("a",))
assert_type(task, Task[Total])
assert_type(task.result, Total | None)
assert_type(client.result(task, timeout="10s"), Total)
assert_type(client.get(task), Task[Total])
assert_type(client.wait(task, 5), Task[Total])
assert_type(client.cancel(task), Task[Total])
assert_type(client.redrive(task), Task[Total])
if task.state is State.SUCCEEDED and task.result is not None:
    assert_type(task.result.amount, float)

assert_type(
    client.enqueue(resize, Resize("a.png"), idempotency_key="a", ttl="1h"), Task[dict[str, int]]
)
# A type without a type of result gives plain JSON values.
assert_type(client.enqueue(send, {"to": "a@example.org", "subject": "hello"}), Task[Any])
assert_type(client.enqueue(TaskType("n", int), 5, run_at=datetime.now(UTC)), Task[Any])

# Literals are judged by the type of the payload.
client.enqueue(TaskType("f", list[float]), [1, 2])
client.enqueue(TaskType("d", dict[str, Any]), {"a": 1})
client.enqueue_many(send, [{"to": "a@example.org", "subject": "hello"}])

# Untyped by name, and by id.
assert_type(client.enqueue("plain:text", {"x": 1}, queue="io", headers={"a": 1}), Task[Any])
assert_type(client.enqueue("plain:text"), Task[Any])
by_id = client.get(5)
assert_type(by_id, Task[Any])
answer = client.result(5)
assert_type(client.wait(5), Task[Any])

many = client.enqueue_many(
    total,
    (Order([float(n)]) for n in range(10)),
    idempotency_keys=["a", None],
    on_progress=lambda done, total: print(done, total),
    max_attempts=3,
)
assert_type(many, list[Task[Total]])
assert_type(client.enqueue_many("plain:text", [1, "two", None]), list[Task[Any]])
for found in client.tasks(state=[State.DEAD, "ready"], type=total, limit=5):
    assert_type(found, Task[Any])


async def awaited(client: AsyncClient) -> None:
    task = await client.enqueue(total, Order([1.0]), priority=5)
    result: Total = await client.result(task)
    many: list[Task[Total]] = await client.enqueue_many(total, [Order([]), Order([1.0])])
    again: Task[Any] = await client.get(5)
    async for each in client.tasks(state=State.DEAD):
        assert each.id
    assert result and many and again
