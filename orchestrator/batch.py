"""The payloads of one enqueue, encoded and divided, and the tasks that come of them.

Options are checked in `enqueueing`, payloads in `payload`; on which session a batch is written,
in which transaction, and whether once more, is decided in `verbs`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from orchestrator import payload as json
from orchestrator.db.channel import Channel
from orchestrator.enqueueing import EnqueueOptions, encode_payload, listed_keys
from orchestrator.errors import PayloadError
from orchestrator.store import tasks as stored
from orchestrator.store.enqueue import Enqueued, enqueue, max_payload_bytes
from orchestrator.task import State, Task
from orchestrator.tasktype import TaskType

# Tasks and bytes of one statement.
_CHUNK_TASKS, _CHUNK_BYTES = 1000, 8 * 1024 * 1024


class Batch:
    """The payloads of one call, encoded, and the tasks that come of them."""

    def __init__(
        self,
        type: TaskType[Any, Any] | str,
        options: EnqueueOptions,
        payloads: list[Any],
        keys: Iterable[str | None] | None,
    ) -> None:
        self.options = options
        self.payloads = payloads
        self.result_type = type.result if isinstance(type, TaskType) else None
        self.is_single = keys is None and len(payloads) == 1
        self.bodies = [
            encode_payload(type, payload, root=self._root(i)) for i, payload in enumerate(payloads)
        ]
        self.keys = _keys(keys, options, n=len(payloads))
        self.chunks = _chunks(self.bodies, self.keys)

    @property
    def is_keyed(self) -> bool:
        """True when every task has a key, so that sending it again makes no second one."""
        return self.keys is not None and None not in self.keys

    async def write(
        self, channel: Channel, on_progress: Callable[[int, int], None] | None = None
    ) -> list[Task[Any]]:
        """Write all of it, in the transaction of `channel`; return the tasks, one per payload."""
        await self._check_sizes(channel)
        entries: list[Enqueued | None] = [None] * len(self.bodies)
        n_done = 0
        for chunk in self.chunks:
            keys = None if self.keys is None else [self.keys[i] for i in chunk]
            bodies = [self.bodies[i] for i in chunk]
            written = await channel.call(enqueue, self.options, bodies, keys=keys)
            for i, entry in zip(chunk, written, strict=True):
                entries[i] = entry
            n_done += len(chunk)
            if on_progress is not None:
                on_progress(n_done, len(self.bodies))
        complete = [entry for entry in entries if entry is not None]
        known: dict[int, Task[Any]] = {}
        if existing := {entry.id for entry in complete if entry.existing}:
            found = await channel.call(stored.get_many, task_ids=sorted(existing))
            known = {task.id: task for task in found}
        return [self._task(i, entry, known) for i, entry in enumerate(complete)]

    def _root(self, i: int) -> str:
        """Return what the payload of this index is called in messages."""
        return "payload" if self.is_single else f"payloads[{i}]"

    async def _check_sizes(self, channel: Channel) -> None:
        """Refuse what the database would refuse, before that breaks the caller's transaction."""
        largest = max(range(len(self.bodies)), key=lambda i: len(self.bodies[i]))
        size = len(self.bodies[largest])
        # The limit is the database's, and asking for it is a round trip.
        if size <= json.DEFAULT_MAX_BYTES or size <= (
            limit := await channel.call(max_payload_bytes)
        ):
            return
        raise PayloadError(
            f"{self._root(largest)}: has {size} bytes as JSON, more than the limit of {limit}: "
            "pass a reference to the data, or raise max_payload_bytes in "
            f'"{channel.schema}".setting'
        )

    def _task(self, i: int, entry: Enqueued, known: dict[int, Task[Any]]) -> Task[Any]:
        options = self.options
        if entry.existing and entry.id in known:
            return replace(known[entry.id], existing=True, result_type=self.result_type)
        is_due = not options.delay and (
            options.run_at is None or options.run_at <= datetime.now(UTC)
        )
        return Task(
            id=entry.id,
            type=options.type,
            queue=options.queue,
            state=State.READY if is_due else State.SCHEDULED,
            priority=options.priority,
            max_attempts=options.max_attempts,
            payload=self.payloads[i],
            tags=options.tags,
            headers=json.decode(options.headers),
            idempotency_key=None if self.keys is None else self.keys[i],
            run_at=options.run_at,
            existing=entry.existing,
            result_type=self.result_type,
        )


def _keys(
    keys: Iterable[str | None] | None, options: EnqueueOptions, *, n: int
) -> list[str | None] | None:
    if keys is None:
        return None if options.idempotency_key is None else [options.idempotency_key] * n
    checked = listed_keys(keys, n=n)
    return checked if any(key is not None for key in checked) else None


def _chunks(bodies: list[bytes], keys: list[str | None] | None) -> list[list[int]]:
    """Divide the indexes of `bodies` into statements of bearable size."""
    order = list(range(len(bodies)))
    if keys is not None and len(bodies) > _CHUNK_TASKS:
        order.sort(key=lambda i: keys[i] or "")
    chunks: list[list[int]] = []
    n_bytes = 0
    for i in order:
        n_bytes += len(bodies[i])
        if not chunks or len(chunks[-1]) == _CHUNK_TASKS or n_bytes > _CHUNK_BYTES:
            chunks.append([])
            n_bytes = len(bodies[i])
        chunks[-1].append(i)
    return chunks
