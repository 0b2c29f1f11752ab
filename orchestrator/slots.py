"""The slots: one shared memory file that tells what every process of the node is doing.

It holds a header, up to 256 slots of 512 bytes, and lanes of 256 bytes. Every word has one writer
and is stored with one aligned 8-byte store, so there are no locks and a process may be killed at
any instruction:

    header   supervisor: pid, generation, stopping, wanted    steward: node, session, last beat
             leader: leading
    slot     supervisor: incarnation, name, lanes             worker: the rest
    record   two copies, and a counter: the copy `counter & 1` is valid. The worker fills the other
             copy, then advances the counter. A reader takes the counter, the copy, and the counter
             again, and starts over when it moved. Beside it, written by the supervisor: which
             attempt it asks to stop.

A slot has one record: what its worker does. A worker of an async pool runs many attempts at once:
its slot has one lane for each, with a record of its own, and the slot's record then tells only
whether the worker waits, claims (and with which token), or wants no more.

(`struct.pack_into` on shared memory writes zeros first and tears; an item store of a
`memoryview('Q')` does not.) Who reads a record of a process that has died reads what it was
doing at the last instruction. What follows from that is decided elsewhere.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

MAX_SLOTS = 256

_MAGIC = 0x6F7263682D736C74  # "orch-slt"
_LAYOUT = 2
_HEADER_WORDS = 64
_SLOT_WORDS = 64
_LANE_WORDS = 32
_FIRST_LANE = _HEADER_WORDS + MAX_SLOTS * _SLOT_WORDS

# Words of the header.
_SUPERVISOR_PID, _GENERATION, _IS_STOPPING, _WANTED, _STARTED_NS = 2, 3, 4, 5, 6
_NODE_ID, _HAS_SESSION, _LAST_BEAT_NS = 8, 9, 10
_IS_LEADER = 12

# Words of a slot.
_INCARNATION, _PID, _READY_NS, _FINISHED, _SPAWNED_NS, _DOWN_NS, _LANES_AT, _N_LANES = range(8)
_NAME, _NAME_WORDS = 8, 8
_RECORD = 16

# Words of a lane, and of the place of a record in a slot.
_COUNTER, _ASKED_TASK, _ASKED_TOKEN = range(3)
_COPIES = (8, 16)
_RECORD_WORDS = 8

# Words of a copy of a record.
_PHASE, _TASK, _ATTEMPT, _TOKEN, _STARTED, _HARD_DEADLINE, _USER_US, _SYSTEM_US = range(8)


class Phase(IntEnum):
    """What a worker is doing; decides whom its death is charged to."""

    BOOT = 0  # not ready yet
    IDLE = 1  # waiting; no token is published
    CLAIM = 2  # a claim with the published token is under way
    RUN = 3  # user code runs
    REPORT = 4  # user code is done, the outcome is not yet answered


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What one attempt, or one worker, is at.

    Times are CLOCK_MONOTONIC nanoseconds, 0 for never. `user_us` and `system_us` are the CPU
    microseconds that the process had used when the attempt began.
    """

    phase: Phase
    task_id: int
    attempt: int
    token: int
    started_ns: int
    hard_deadline_ns: int
    user_us: int = 0
    system_us: int = 0

    @property
    def is_running(self) -> bool:
        """True while user code of an attempt runs."""
        return self.phase is Phase.RUN and self.task_id > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotView(Record):
    """One slot as it stood when it was read; `lanes` are those that have an attempt.

    Times are CLOCK_MONOTONIC nanoseconds, 0 for never.
    """

    index: int
    name: str
    incarnation: int
    pid: int
    ready_ns: int
    spawned_ns: int
    down_ns: int
    finished_count: int
    n_lanes: int = 0
    lanes: tuple[Record, ...] = ()

    @property
    def pool(self) -> str:
        """The pool's name: `cpu-0` is the first slot of `cpu`."""
        return self.name.rpartition("-")[0]

    @property
    def is_ready(self) -> bool:
        return self.ready_ns > 0

    @property
    def records(self) -> list[Record]:
        """The records that hold a token: of the worker itself, then of its lanes."""
        return [record for record in (self, *self.lanes) if record.token]

    @property
    def running(self) -> list[Record]:
        """The attempts whose user code runs."""
        return [record for record in self.records if record.is_running]

    @property
    def n_busy(self) -> int:
        """How many attempts run or are being reported."""
        return sum(1 for record in self.records if record.phase >= Phase.RUN and record.task_id)


class Header:
    """The words about the node as a whole. Each has one writer, named in the module's header."""

    def __init__(self, words: memoryview) -> None:
        self._words = words

    def _get(self, word: int) -> int:
        return int(self._words[word])

    def _set(self, word: int, value: int) -> None:
        self._words[word] = value

    supervisor_pid = property(
        lambda self: self._get(_SUPERVISOR_PID),
        lambda self, value: self._set(_SUPERVISOR_PID, value),
    )
    generation = property(
        lambda self: self._get(_GENERATION), lambda self, value: self._set(_GENERATION, value)
    )
    is_stopping = property(
        lambda self: bool(self._get(_IS_STOPPING)),
        lambda self, value: self._set(_IS_STOPPING, int(value)),
    )
    # How many slots, counted from index 0, are or were in use: readers look no further.
    wanted = property(
        lambda self: self._get(_WANTED), lambda self, value: self._set(_WANTED, value)
    )
    started_ns = property(
        lambda self: self._get(_STARTED_NS), lambda self, value: self._set(_STARTED_NS, value)
    )
    node_id = property(
        lambda self: self._get(_NODE_ID), lambda self, value: self._set(_NODE_ID, value)
    )
    is_session_ok = property(
        lambda self: bool(self._get(_HAS_SESSION)),
        lambda self, value: self._set(_HAS_SESSION, int(value)),
    )
    # The start of the last beat that was answered, CLOCK_BOOTTIME nanoseconds: suspend counts.
    last_beat_ns = property(
        lambda self: self._get(_LAST_BEAT_NS), lambda self, value: self._set(_LAST_BEAT_NS, value)
    )
    is_leader = property(
        lambda self: bool(self._get(_IS_LEADER)),
        lambda self, value: self._set(_IS_LEADER, int(value)),
    )

    def seconds_since_beat(self) -> float:
        """Return the age of the last good beat in seconds, suspend included."""
        return (time.clock_gettime_ns(time.CLOCK_BOOTTIME) - int(self.last_beat_ns)) / 1e9


class RecordWriter:
    """The worker's side of one record."""

    def __init__(self, words: memoryview, at: int) -> None:
        self._words = words
        self._at = at

    def publish(
        self,
        phase: Phase,
        *,
        token: int = 0,
        task_id: int = 0,
        attempt: int = 0,
        started_ns: int = 0,
        hard_deadline_ns: int = 0,
        user_us: int = 0,
        system_us: int = 0,
    ) -> None:
        """Replace the record; after a kill at any instruction the old or the new one is valid."""
        words = self._words
        counter = words[self._at + _COUNTER] + 1
        at = self._at + _COPIES[counter & 1]
        words[at + _PHASE] = phase
        words[at + _TASK] = task_id
        words[at + _ATTEMPT] = attempt
        words[at + _TOKEN] = token
        words[at + _STARTED] = started_ns
        words[at + _HARD_DEADLINE] = hard_deadline_ns
        words[at + _USER_US] = user_us
        words[at + _SYSTEM_US] = system_us
        words[self._at + _COUNTER] = counter

    def is_asked_to_stop(self, task_id: int, token: int) -> bool:
        """Tell whether the supervisor asks this very attempt to stop."""
        words, at = self._words, self._at
        return (words[at + _ASKED_TASK], words[at + _ASKED_TOKEN]) == (task_id, token)


class SlotWriter(RecordWriter):
    """The worker's side of its own slot."""

    def __init__(self, words: memoryview, offset: int) -> None:
        super().__init__(words, offset + _RECORD)
        self._offset = offset

    def begin(self, pid: int) -> None:
        """Say who lives here now: the first store of a new worker."""
        self._words[self._offset + _PID] = pid

    def ready(self) -> None:
        """Say that the worker can claim."""
        self.publish(Phase.IDLE)
        self._words[self._offset + _READY_NS] = time.monotonic_ns()

    def lanes(self) -> list[RecordWriter]:
        """Return the writers of the slot's lanes."""
        first = self._words[self._offset + _LANES_AT]
        count = self._words[self._offset + _N_LANES]
        return [RecordWriter(self._words, first + n * _LANE_WORDS) for n in range(count)]

    def count_finished(self, count: int = 1) -> None:
        self._words[self._offset + _FINISHED] += count


class Slots:
    """All slots of a node, mapped into this process."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._map = mmap.mmap(fd, os.fstat(fd).st_size)
        self._words = memoryview(self._map).cast("Q")
        self.header = Header(self._words)

    @classmethod
    def create(cls, *, n_lanes: int = 0) -> Slots:
        """Make the file, empty; children inherit its descriptor and `attach`."""
        fd = os.memfd_create("orchestrator-slots", os.MFD_CLOEXEC)
        os.ftruncate(fd, (_FIRST_LANE + n_lanes * _LANE_WORDS) * 8)
        slots = cls(fd)
        slots._words[0], slots._words[1] = _MAGIC, _LAYOUT
        return slots

    @classmethod
    def attach(cls, fd: int) -> Slots:
        """Map the slots of a supervisor.

        Raises:
            ValueError: the descriptor is not a slots file of this version.
        """
        slots = cls(fd)
        if (slots._words[0], slots._words[1]) != (_MAGIC, _LAYOUT):
            raise ValueError(f"descriptor {fd} holds no slots of layout {_LAYOUT}")
        return slots

    def lease(
        self, index: int, name: str, incarnation: int, *, first_lane: int = 0, n_lanes: int = 0
    ) -> None:
        """Give a slot to a process that is about to be born (supervisor only).

        A slot that has lanes always has the same ones: no other slot may share them.
        """
        encoded = name.encode().ljust(_NAME_WORDS * 8, b"\0")
        if len(encoded) > _NAME_WORDS * 8:
            raise ValueError(f"slot name {name!r} is longer than {_NAME_WORDS * 8} bytes")
        offset = self._offset(index)
        down_ns = self._words[offset + _DOWN_NS]
        self.clear(index)
        for word in range(_NAME_WORDS):
            chunk = encoded[word * 8 : word * 8 + 8]
            self._words[offset + _NAME + word] = int.from_bytes(chunk, "little")
        self._words[offset + _LANES_AT] = _FIRST_LANE + first_lane * _LANE_WORDS
        self._words[offset + _N_LANES] = n_lanes
        self._words[offset + _SPAWNED_NS] = time.monotonic_ns()
        # Down since its last process died: a crash loop must not look like a fresh start.
        self._words[offset + _DOWN_NS] = down_ns or time.monotonic_ns()
        self._words[offset + _INCARNATION] = incarnation
        self.header.wanted = max(self.header.wanted, index + 1)

    def clear(self, index: int) -> None:
        """Empty the records of a process that is gone (supervisor only).

        Their tokens would otherwise protect rows that nobody runs. The name stays: the slot is
        wanted, and `down_ns` tells since when it has been without a process.
        """
        words, offset = self._words, self._offset(index)
        was_ready = words[offset + _READY_NS]
        for word in (*range(_INCARNATION, _SPAWNED_NS + 1), *range(_RECORD, _SLOT_WORDS)):
            words[offset + word] = 0
        first = words[offset + _LANES_AT]
        for word in range(first, first + words[offset + _N_LANES] * _LANE_WORDS):
            words[word] = 0
        if was_ready:
            words[offset + _DOWN_NS] = time.monotonic_ns()

    def ask_to_stop(self, index: int, attempts: Collection[tuple[int, int]]) -> None:
        """Ask those attempts, (task, token), to stop that the slot or a lane of it runs.

        Supervisor only. The worker looks when it is signalled.
        """
        words = self._words
        for at in self._records_at(index):
            record = self._record(at)
            if (record[_TASK], record[_TOKEN]) in attempts:
                words[at + _ASKED_TOKEN] = 0
                words[at + _ASKED_TASK] = record[_TASK]
                words[at + _ASKED_TOKEN] = record[_TOKEN]

    def holds(self, index: int, task_id: int, token: int) -> bool:
        """Tell whether the slot or a lane of it holds an attempt: cheaper than `read`."""
        words = self._words
        for at in self._records_at(index):
            copy = at + _COPIES[words[at + _COUNTER] & 1]
            if words[copy + _TASK] == task_id and self._record(at)[_TOKEN] == token:
                return True
        return False

    def writer(self, index: int) -> SlotWriter:
        return SlotWriter(self._words, self._offset(index))

    def read(self, index: int) -> SlotView | None:
        """Read one slot; None when it is not in use. Without a process, `incarnation` is 0."""
        words, offset = self._words, self._offset(index)
        name = b"".join(
            int(words[offset + _NAME + word]).to_bytes(8, "little") for word in range(_NAME_WORDS)
        )
        if not name[0]:
            return None
        n_lanes = words[offset + _N_LANES]
        # The worker's own record first: a claim's token leaves it only when the lanes hold it.
        own = self._record(offset + _RECORD)
        lanes = self._lanes(words[offset + _LANES_AT], n_lanes) if n_lanes else ()
        return SlotView(
            index=index,
            name=name.rstrip(b"\0").decode(),
            incarnation=words[offset + _INCARNATION],
            pid=words[offset + _PID],
            ready_ns=words[offset + _READY_NS],
            spawned_ns=words[offset + _SPAWNED_NS],
            down_ns=words[offset + _DOWN_NS],
            finished_count=words[offset + _FINISHED],
            n_lanes=n_lanes,
            lanes=lanes,
            **_fields(own),
        )

    def wanted(self) -> list[SlotView]:
        """Read all slots that are in use, with or without a living process."""
        views = (self.read(index) for index in range(self.header.wanted))
        return [view for view in views if view is not None]

    def occupied(self) -> list[SlotView]:
        """Read all slots that have a process."""
        return [view for view in self.wanted() if view.incarnation]

    def any_busy(self) -> bool:
        """Tell whether any worker claims, runs user code or reports: cheap, for the sweep."""
        words = self._words
        for index in range(self.header.wanted):
            for at in self._records_at(index):
                if words[at + _COPIES[words[at + _COUNTER] & 1] + _PHASE] >= Phase.CLAIM:
                    return True
        return False

    def _records_at(self, index: int) -> Iterator[int]:
        """Tell where the records of a slot are: its own, then those of its lanes."""
        words, offset = self._words, self._offset(index)
        first, n_lanes = words[offset + _LANES_AT], words[offset + _N_LANES]
        yield offset + _RECORD
        yield from range(first, first + n_lanes * _LANE_WORDS, _LANE_WORDS)

    def _record(self, at: int) -> list[int]:
        """Read the valid copy of a record."""
        words = self._words
        while True:
            counter = words[at + _COUNTER]
            copy = at + _COPIES[counter & 1]
            record = words[copy : copy + _RECORD_WORDS].tolist()
            if words[at + _COUNTER] == counter:
                return record

    def _lanes(self, first: int, n_lanes: int) -> tuple[Record, ...]:
        records = (self._record(first + n * _LANE_WORDS) for n in range(n_lanes))
        return tuple(Record(**_fields(record)) for record in records if record[_TASK])

    @staticmethod
    def _offset(index: int) -> int:
        return _HEADER_WORDS + index * _SLOT_WORDS


def _fields(record: list[int]) -> dict[str, Any]:
    return {
        "phase": Phase(record[_PHASE]),
        "task_id": record[_TASK],
        "attempt": record[_ATTEMPT],
        "token": record[_TOKEN],
        "started_ns": record[_STARTED],
        "hard_deadline_ns": record[_HARD_DEADLINE],
        "user_us": record[_USER_US],
        "system_us": record[_SYSTEM_US],
    }
