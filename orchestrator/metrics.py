"""Every metric: its definition, the functions that count, and the text that Prometheus reads.

What a process counts lies in memory-mapped files of the metrics directory. A file is named after
the *slot* (`cpu-0`, `steward`), never after a pid: the process that takes over a slot goes on where
its dead predecessor stopped, so totals survive a SIGKILL and the number of files is bounded. Two
living processes must not share a name; the supervisor leases a slot until its process is reaped.

    set_identity("cpu-0")          once, in the process that counts, after the last fork
    task_ended(...), claimed(...)  count; they do nothing before that, and never raise
    render(derived)                in the web process: all files added up, and what it derives

What is derived at the moment of the scrape (from the slots, from the leader's statistics) comes
from `web/collectors.py`. When to count is the callers' business: after the database said
`recorded`, and never in a process that a task has forked.

prometheus_client decides at import whether it writes files, from PROMETHEUS_MULTIPROC_DIR. This is
the only module that imports it, and the supervisor sets the variable before it starts anybody.
Importing this module makes no file: the fork server does so and leaves none behind.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, NamedTuple

from prometheus_client import Counter, Histogram, generate_latest, values
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from orchestrator import logs
from orchestrator.outcome import Cause, Ending

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
DIRECTORY_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
# Anybody may enqueue any type name by SQL: what comes after so many is added up as "other".
MAX_LABEL_SETS = 1000
OTHER = "other"

_log = logs.get("metrics")


class Source(StrEnum):
    """Where the value of a metric comes from."""

    PROCESSES = "processes"  # counted by workers, steward and leader, in files
    NODE = "node"  # derived at the scrape, from the shared memory of the node
    LEADER = "leader"  # read from the leader's statistics, only on the node that leads


class Metric(NamedTuple):
    """One line of `METRICS`. `zeros` are the label sets exported as 0 before the first event."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    source: Source
    help: str
    buckets: tuple[float, ...] = ()
    zeros: tuple[tuple[str, ...], ...] = ()

    @property
    def family(self) -> str:
        """The name without the suffix that the text format appends to counters."""
        return self.name.removesuffix("_total") if self.kind == "counter" else self.name


# From a statement's round trip to the longest tasks that anybody times with a histogram.
_TASK_BUCKETS = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0,
    7200.0,
)  # fmt: skip
_WAIT_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 60.0, 300.0, 1800.0)
_CLAIM_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_BATCH_BUCKETS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0)

_BARE: tuple[tuple[str, ...], ...] = ((),)

METRICS = (
    Metric("tasks_enqueued_total", "counter", ("type",), Source.LEADER,
           "Tasks enqueued since the schema was made, by whomever."),
    Metric("tasks_completed_total", "counter", ("type", "status"), Source.PROCESSES,
           "Attempts whose end was recorded, by outcome: succeeded, failed, crashed, timed_out, "
           "cancelled."),
    Metric("tasks_retried_total", "counter", ("type",), Source.PROCESSES,
           "Attempts that did not succeed and were followed by another one."),
    Metric("tasks_dead_letter_total", "counter", ("type",), Source.PROCESSES,
           "Tasks moved to the dead letter queue."),
    Metric("tasks_pending", "gauge", ("type",), Source.LEADER,
           "Tasks that wait: ready, scheduled or held."),
    Metric("tasks_running", "gauge", (), Source.NODE,
           "Tasks that run on this node."),
    Metric("task_duration_seconds", "histogram", ("type",), Source.PROCESSES,
           "Wall time of attempts whose end was recorded.", buckets=_TASK_BUCKETS),
    Metric("worker_pool_utilization", "gauge", ("pool",), Source.NODE,
           "Tasks that run over those that could, 0 to 1; 0 without a ready worker."),
    Metric("leader_status", "gauge", ("worker_id",), Source.NODE,
           "1 on the node that leads, by its own belief, else 0."),
    Metric("orchestrator_queue_wait_seconds", "histogram", ("queue",), Source.PROCESSES,
           "Time from being due to being claimed, of first attempts.", buckets=_WAIT_BUCKETS),
    Metric("orchestrator_oldest_pending_seconds", "gauge", ("queue",), Source.LEADER,
           "How long the task at the head of the queue has been due."),
    Metric("orchestrator_pending_is_estimated", "gauge", ("type",), Source.LEADER,
           "1 where tasks_pending is an estimate; absent where it is exact."),
    Metric("orchestrator_statistics_age_seconds", "gauge", (), Source.LEADER,
           "Age of what the leader counted; absent on nodes that do not lead."),
    Metric("orchestrator_claim_duration_seconds", "histogram", (), Source.PROCESSES,
           "Time of one claim that returned tasks, from sending to answer.",
           buckets=_CLAIM_BUCKETS),
    Metric("orchestrator_claimed_tasks", "histogram", (), Source.PROCESSES,
           "Tasks that one claim returned.", buckets=_BATCH_BUCKETS),
    Metric("orchestrator_workers", "gauge", ("pool", "state"), Source.NODE,
           "Slots of this node by what their worker does: down, starting, idle, claiming, running, "
           "reporting."),
    Metric("orchestrator_worker_exits_total", "counter", ("cause",), Source.PROCESSES,
           "Worker processes that ended, by cause.",
           zeros=tuple((str(cause),) for cause in Cause)),
    Metric("orchestrator_fence_rejections_total", "counter", (), Source.PROCESSES,
           "Ends that the database refused, because the attempt was not the task's any more.",
           zeros=_BARE),
    Metric("orchestrator_claims_lost_total", "counter", (), Source.PROCESSES,
           "Attempts ended because their claim was gone from the database.", zeros=_BARE),
    Metric("orchestrator_rescues_total", "counter", (), Source.PROCESSES,
           "Tasks taken back from nodes that are gone.", zeros=_BARE),
    Metric("orchestrator_database_errors_total", "counter", ("process",), Source.PROCESSES,
           "Times the database could not be reached, or a reply was lost.",
           zeros=(("worker",), ("steward",), ("leader",))),
    Metric("orchestrator_database_session", "gauge", (), Source.NODE,
           "1 while the node has its session in the database, else 0."),
    Metric("orchestrator_heartbeat_age_seconds", "gauge", (), Source.NODE,
           "Age of the last heartbeat that the database answered."),
    Metric("orchestrator_metric_files", "gauge", ("state",), Source.NODE,
           "Files of this directory that the scrape has read, or skipped because they are broken."),
    Metric("orchestrator_build_info", "gauge", ("version",), Source.NODE,
           "Always 1; the version is the label."),
)  # fmt: skip
_BY_NAME = {metric.name: metric for metric in METRICS}

# What task_ended counts. A snoozed or released attempt has not completed anything.
_COMPLETED = frozenset(
    {Ending.SUCCEEDED, Ending.FAILED, Ending.CRASHED, Ending.TIMED_OUT, Ending.CANCELLED}
)

# The files before set_identity: only metrics that a user's module defines in the fork server.
_BEFORE_IDENTITY = "preload"
_IDENTITY_PATTERN = re.compile(r"[A-Za-z0-9-]+")
_SMALLEST_FILE_BYTES = 1 << 16

_identity = _BEFORE_IDENTITY
_recorder: _Recorder | None = None

_are_files_named = False


def _name_files_by_identity() -> None:
    """Name prometheus_client's files after `_identity`, which it asks for at every write.

    Done at import, before a user's module defines metrics of its own: named after pids, those
    would leave two files for each dead worker.
    """
    global _are_files_named
    if not _are_files_named:
        make: Any = values.MultiProcessValue
        values.ValueClass = make(process_identifier=lambda: _identity)
        _are_files_named = True


if DIRECTORY_VARIABLE in os.environ:
    _name_files_by_identity()


def set_identity(name: str) -> None:
    """Begin to count under a slot's name, from where its last process stopped.

    Files of this name that a killed process left broken are removed. Without a metrics directory
    (a test, a handler run by hand) everything stays a no-op.

    Raises:
        ValueError: the name does not match `[A-Za-z0-9-]+`.
    """
    global _identity, _recorder
    if not _IDENTITY_PATTERN.fullmatch(name):
        raise ValueError(
            f"metrics identity {name!r} must match [A-Za-z0-9-]+: it becomes part of a file name "
            "in which underscores separate; use the name of the slot"
        )
    directory = os.environ.get(DIRECTORY_VARIABLE)
    if not directory:
        return
    try:
        _remove_remains(Path(directory), name)
    except OSError as error:
        _log.warning("metrics.disabled", directory=directory, reason=str(error))
        return
    _name_files_by_identity()
    _identity = name
    _recorder = _Recorder(Path(directory), name)


def announce(types: Iterable[str]) -> None:
    """Export 0 for the counters of these task types, so that their first event shows in a rate.

    Prefix patterns (`email:`) are no types and are skipped.
    """
    if _recorder is None:
        return
    for type in types:
        if type.endswith(":"):
            continue
        for ending in sorted(_COMPLETED):
            _recorder.child("tasks_completed_total", type, ending)
        _recorder.child("tasks_retried_total", type)
        _recorder.child("tasks_dead_letter_total", type)


def task_ended(type: str, ending: str, wall_seconds: float | None = None) -> None:
    """Count the recorded end of one attempt; `ending` is a word of `Ending`.

    Snoozed and released attempts count nothing. Without `wall_seconds` (unknown after a crash) the
    histogram of durations is left alone.
    """
    if ending not in _COMPLETED:
        return
    _count("tasks_completed_total", type, str(ending))
    if wall_seconds is not None:
        _observe("task_duration_seconds", wall_seconds, type)


def retried(type: str) -> None:
    """Count an attempt that did not succeed and is followed by another one."""
    _count("tasks_retried_total", type)


def dead(type: str) -> None:
    """Count a task that went to the dead letter queue."""
    _count("tasks_dead_letter_total", type)


def waited(queue: str, seconds: float) -> None:
    """Observe how long a claimed task had been due. Negative (clocks differ) counts as 0."""
    _observe("orchestrator_queue_wait_seconds", max(0.0, seconds), queue)


def claimed(seconds: float, n_tasks: int) -> None:
    """Observe one claim that returned tasks: its time and how many they were."""
    _observe("orchestrator_claim_duration_seconds", seconds)
    _observe("orchestrator_claimed_tasks", n_tasks)


def fence_rejected(n_attempts: int = 1) -> None:
    """Count attempts whose end the database answered with `lost`."""
    _count("orchestrator_fence_rejections_total", by=n_attempts)


def claim_lost(n_attempts: int = 1) -> None:
    """Count attempts that ran without a row in `running` and were therefore ended."""
    _count("orchestrator_claims_lost_total", by=n_attempts)


def rescued(n_tasks: int) -> None:
    """Count tasks taken back from nodes that are gone."""
    _count("orchestrator_rescues_total", by=n_tasks)


def database_error(process: str) -> None:
    """Count one failure to reach the database; `process` is a kind: worker, steward, leader."""
    _count("orchestrator_database_errors_total", process)


def worker_exited(cause: str) -> None:
    """Count the end of a worker process; `cause` is a word of `Cause` or another fixed one."""
    _count("orchestrator_worker_exits_total", cause)


def _count(name: str, *labels: str, by: float = 1) -> None:
    if _recorder is not None:
        _recorder.child(name, *labels).inc(by)


def _observe(name: str, value: float, *labels: str) -> None:
    if _recorder is not None:
        _recorder.child(name, *labels).observe(value)


def _forget_identity() -> None:
    """Stop counting in a forked child: its parent still writes the files of this name.

    The fork server has nothing to forget; the worker that it forks sets its own identity.
    """
    global _identity, _recorder
    _identity, _recorder = _BEFORE_IDENTITY, None


os.register_at_fork(after_in_child=_forget_identity)


class _Dropped:
    """Stands for a label set that cannot be kept: counting must never stop the one who counts."""

    def inc(self, amount: float = 1) -> None:
        pass

    def observe(self, amount: float) -> None:
        pass


class _Recorder:
    """The metrics of one identity. An object of prometheus_client is made at its first event."""

    def __init__(self, directory: Path, identity: str) -> None:
        self._directory = directory
        self._identity = identity
        self._parents: dict[str, Any] = {}
        self._children: dict[tuple[str, ...], Any] = {}
        self._n_children: dict[str, int] = {}
        self._is_reported = False

    def child(self, name: str, *labels: str) -> Any:
        """Return what counts for one label set of a metric."""
        key = (name, *labels)
        found = self._children.get(key)
        if found is None:
            if labels and self._n_children.get(name, 0) >= MAX_LABEL_SETS and labels[0] != OTHER:
                return self.child(name, OTHER, *labels[1:])
            found = self._children[key] = self._added(_BY_NAME[name], labels)
            self._n_children[name] = self._n_children.get(name, 0) + 1
        return found

    def _added(self, metric: Metric, labels: tuple[str, ...]) -> Any:
        try:
            self._reserve(metric, labels)
            parent = self._parents.get(metric.name)
            if parent is None:
                parent = self._parents[metric.name] = _parent(metric)
            return parent.labels(*labels) if labels else parent
        except (OSError, RuntimeError, ValueError, struct.error) as error:
            # RuntimeError, struct.error: somebody else wrote into our file.
            if not self._is_reported:
                self._is_reported = True
                _log.warning("metrics.disabled", metric=metric.name, reason=str(error))
            return _Dropped()

    def _reserve(self, metric: Metric, labels: tuple[str, ...]) -> None:
        """Allocate the room of a new label set before anything is mapped there.

        prometheus_client only extends the file; on a full disk the first store into such a page
        is a SIGBUS, and the task that runs would pay for it.
        """
        path = self._directory / f"{metric.kind}_{self._identity}.db"
        # An entry is a JSON list of name, sample, labels and help; one character of a label may
        # become two escapes of 6 bytes.
        n_text = len(metric.help) + 2 * len(metric.name) + sum(map(len, metric.labels))
        n_entry = 200 + n_text + 12 * sum(map(len, labels))
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(fd).st_size
            used = struct.unpack("i", os.pread(fd, 4, 0))[0] if size >= 4 else 8
            wanted = max(size, _SMALLEST_FILE_BYTES)
            while used + n_entry * (len(metric.buckets) + 2) > wanted:
                wanted *= 2
            if wanted > size:
                os.posix_fallocate(fd, size, wanted - size)
        finally:
            os.close(fd)


def _parent(metric: Metric) -> Any:
    if metric.kind == "histogram":
        return Histogram(
            metric.name, metric.help, metric.labels, buckets=metric.buckets, registry=None
        )
    return Counter(metric.family, metric.help, metric.labels, registry=None)


def _remove_remains(directory: Path, identity: str) -> None:
    """Remove what the last process of this name left and nobody may go on from.

    Broken files, and the `live` gauges of a user's module: they speak of a process that is dead.
    """
    for path in directory.glob(f"*_{identity}.db"):
        is_live_gauge = path.name.startswith("gauge_live")
        if is_live_gauge or (path.stat().st_size and not _is_sound(path)):
            path.unlink(missing_ok=True)
            if not is_live_gauge:
                _log.warning("metrics.file_removed", path=str(path), reason="it is broken")


def _is_sound(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            size, used = os.fstat(file.fileno()).st_size, struct.unpack("i", file.read(4))[0]
        _added_up([path])
    except _BROKEN:
        return False
    return 0 <= int(used) <= size


# What reading a file raises that is empty, cut short, or not ours.
_BROKEN = (OSError, RuntimeError, ValueError, KeyError, TypeError, IndexError, struct.error)


Derived = Mapping[str, Sequence[tuple[tuple[str, ...], float]]]


def render(derived: Derived, *, directory: Path | None = None) -> bytes:
    """Return the text of a scrape: the files of all processes added up, and `derived`.

    `derived` maps the name of a metric to pairs of label values, in the order of its labels, and
    value. Files that cannot be read are left out and counted, they do not fail the scrape. They
    are not removed either: an empty one may belong to a process that is just being born.
    """
    found, n_read, n_skipped = _read(directory) if directory is not None else ({}, 0, 0)
    derived = {
        **derived,
        "orchestrator_metric_files": [(("read",), n_read), (("skipped",), n_skipped)],
    }
    families = []
    for metric in METRICS:
        family = found.pop(metric.family, None)
        # A user's metric of the same name must not double ours: Prometheus refuses the page.
        if family is None or metric.source is not Source.PROCESSES or family.type != metric.kind:
            family = Family(metric.family, metric.help, metric.kind)
        for labels, value in derived.get(metric.name, ()):
            family.add_sample(metric.name, _labels(metric, labels), value)
        present = {tuple(sample.labels.values()) for sample in family.samples}
        for labels in metric.zeros:
            if labels not in present:
                family.add_sample(metric.name, _labels(metric, labels), 0.0)
        families.append(family)
    return generate_latest(_Page([*families, *found.values()]))


def _labels(metric: Metric, label_values: tuple[str, ...]) -> dict[str, str]:
    return dict(zip(metric.labels, label_values, strict=True))


class _Page(Collector):
    """Families in the order in which they are written; all that `generate_latest` asks of one."""

    def __init__(self, families: Sequence[Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[Family]:
        return iter(self._families)


def _read(directory: Path) -> tuple[dict[str, Family], int, int]:
    """Add up the files: families by name, how many files were read, how many left out."""
    paths = sorted(directory.glob("*.db"))
    try:
        families = _added_up(paths)
        n_skipped = 0
    except _BROKEN:
        # Rare, and dear only then: look at each file, and add up the sound ones.
        sound = [path for path in paths if _is_sound(path)]
        n_skipped = len(paths) - len(sound)
        families = _added_up(sound)
    return {family.name: family for family in families}, len(paths) - n_skipped, n_skipped


def _added_up(paths: Iterable[Path]) -> list[Family]:
    merge: Any = MultiProcessCollector.merge
    return list(merge([str(path) for path in paths]))
