"""The log: one line for each change of state, on standard error, for people or for programs.

    2026-01-31T09:30:00.123Z INFO  attempt.crashed worker=cpu-0 gen=1 pid=4711 task_id=17 signal=9
    {"ts": "...", "level": "info", "event": "attempt.crashed", "identity": "worker=cpu-0 ...", ...}

A line begins with time, level, event ("noun.verb_past") and the identity of the process; then
come the fields: those bound to the logger, those of the running task, those of the call. A
process calls `configure` once it knows who it is (again after a fork). Where nobody did, as in a
program that only uses the client, events go to the standard library's `logging`.

Writing a line never raises and takes no lock. Lines that cannot be written are counted, and
the count is written before the next line that can be (`log.dropped`). Passwords are hidden by
those who log a URL (`config_rules.redacted`).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import stat
import sys
import traceback
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from orchestrator.config import LoggingSettings

# The fields of the task that runs in this context: the runner sets them around each attempt.
task_fields: ContextVar[Mapping[str, object]] = ContextVar(
    "task_fields", default=MappingProxyType({})
)

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_RESERVED = frozenset({"ts", "level", "event", "identity"})
# A pipe takes this much at once, or nothing.
_PIPE_BUF = 4096
# How long a process that may block waits for a reader before it drops a line.
_PATIENCE_MS = 5000


class Logger:
    """Writes events of one part of the program; made by `get`."""

    def __init__(self, name: str, fields: Mapping[str, object] = MappingProxyType({})) -> None:
        self.name = name
        self.fields = fields

    def bound(self, **fields: object) -> Logger:
        """Return a logger whose every line carries these fields too."""
        return Logger(self.name, {**self.fields, **fields})

    def debug(self, event: str, /, **fields: object) -> None:
        self._write("debug", event, fields)

    def info(self, event: str, /, **fields: object) -> None:
        """Log a change of state; `event` is "noun.verb_past"."""
        self._write("info", event, fields)

    def warning(self, event: str, /, **fields: object) -> None:
        """Log what somebody should look at some day."""
        self._write("warning", event, fields)

    def error(self, event: str, /, **fields: object) -> None:
        """Log what somebody should look at now."""
        self._write("error", event, fields)

    def exception(self, event: str, /, **fields: object) -> None:
        """Log an error with the exception that is being handled, and its traceback."""
        self._write("error", event, fields, sys.exception())

    def _write(
        self,
        level: str,
        event: str,
        fields: Mapping[str, object],
        error: BaseException | None = None,
    ) -> None:
        sink = _sink
        if sink is None:
            _forward(self.name, level, event, {**self.fields, **fields}, error)
        elif _LEVELS[level] >= sink.threshold:
            sink.write(level, event, {**self.fields, **task_fields.get(), **fields}, error)


def get(name: str) -> Logger:
    """Return the logger of a part of the program, such as "supervisor"."""
    return Logger(name)


def configure(settings: LoggingSettings, *, identity: str, stream_fd: int = 2) -> None:
    """Begin to write lines of this process, as `identity` ("worker=cpu-0 gen=1 pid=4711").

    `stream_fd` is where to. With `settings.configure` records of the standard library's
    `logging`, such as those of handlers, become lines as well: one handler of ours on the root
    logger, in place of any that writes to a standard stream.
    """
    global _sink
    _sink = _Sink(
        stream_fd,
        identity=identity,
        is_json=settled(settings, stream_fd=stream_fd).format == "json",
        threshold=_LEVELS[settings.level],
    )
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, _RootHandler) or (
            settings.configure and _writes_to_standard_stream(handler)
        ):
            root.removeHandler(handler)
    if settings.configure:
        root.addHandler(_RootHandler(_sink))
        root.setLevel(_LEVELS[settings.level])


def settled(settings: LoggingSettings, *, stream_fd: int = 2) -> LoggingSettings:
    """Return the settings with "auto" replaced by what it means on this stream.

    For children that write into a file of ours, whose lines end on the parent's stream.
    """
    if settings.format != "auto":
        return settings
    is_terminal = False
    with contextlib.suppress(OSError):
        is_terminal = os.isatty(stream_fd)
    return msgspec.structs.replace(settings, format="console" if is_terminal else "json")


def nonblocking_stderr() -> int:
    """Return a descriptor of standard error that never makes the caller wait; for `configure`.

    A description of its own, so that no other process becomes non-blocking with it. Where the
    stream cannot be opened anew (a socket, another user's pipe) it is a duplicate, and lines
    are written only when the stream says it has room.
    """
    with contextlib.suppress(OSError):
        # Not so a file: two descriptions would write over each other, and files do not block.
        if not stat.S_ISREG(os.fstat(2).st_mode):
            flags = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            with contextlib.suppress(OSError):
                fd = os.open("/proc/self/fd/2", flags)
                _impatient.add(fd)
                return fd
        fd = os.dup(2)
        _impatient.add(fd)
        return fd
    # Standard error is closed: there is nothing to write to.
    return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)


def unconfigure() -> None:
    """Undo `configure`: for tests, and for programs that take the log back."""
    global _sink
    _sink = None
    root = logging.getLogger()
    for handler in [each for each in root.handlers if isinstance(each, _RootHandler)]:
        root.removeHandler(handler)


class _Sink:
    """The stream of one process: makes lines and writes them whole, or counts them as dropped."""

    def __init__(self, fd: int, *, identity: str, is_json: bool, threshold: int) -> None:
        self.threshold = threshold
        self._fd = fd
        self._identity = identity
        self._is_json = is_json
        self._is_patient = fd not in _impatient
        self._may_block = _is_blocking(fd)
        self._n_dropped = 0
        self._rest = b""  # of a line that was written in part

    def write(
        self,
        level: str,
        event: str,
        fields: Mapping[str, object],
        error: BaseException | None = None,
    ) -> None:
        """Write one line; never raises."""
        try:
            line = self._line(level, event, fields, error)
            if self._n_dropped:
                dropped = self._line("warning", "log.dropped", {"lines": self._n_dropped}, None)
                if not self._put(dropped):
                    self._n_dropped += 1
                    return
                self._n_dropped = 0
            if not self._put(line):
                self._n_dropped += 1
        except Exception:  # noqa: BLE001 - the log must not end what it reports on
            self._n_dropped += 1

    def _line(
        self,
        level: str,
        event: str,
        fields: Mapping[str, object],
        error: BaseException | None,
    ) -> bytes:
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        items: dict[str, object] = {
            (f"{name}_" if name in _RESERVED else name): value
            for name, value in fields.items()
            if value is not None
        }
        trace = ""
        if error is not None:
            items.setdefault("error", f"{type(error).__name__}: {_text(error)}")
            trace = "".join(traceback.format_exception(error))
        if self._is_json:
            if trace:
                items["traceback"] = trace
            head = {"ts": now, "level": level, "event": event, "identity": self._identity}
            text = _json({**head, **items})
        else:
            words = [now, f"{level.upper():<7}", event, self._identity]
            words += [f"{name}={_console(value)}" for name, value in items.items()]
            text = " ".join(words)
            for row in trace.splitlines():
                text += f"\n    {row}"
        return text.encode("utf-8", "backslashreplace") + b"\n"

    def _put(self, line: bytes) -> bool:
        """Write a line, after what is left of the one before; False when there is no room."""
        if self._rest:
            self._rest = self._rest[self._send(self._rest) :]
            if self._rest:
                return False
        n_sent = self._send(line)
        if n_sent:
            self._rest = line[n_sent:]
        return n_sent > 0

    def _send(self, content: bytes) -> int:
        """Return how many bytes went out: fewer than all when there is no room, or no stream."""
        n_sent = 0
        while n_sent < len(content):
            try:
                n_sent += self._send_some(content[n_sent:])
            except BlockingIOError:
                if not self._is_patient or not self._has_room(_PATIENCE_MS):
                    break
            except OSError:
                # Closed, nobody reads, disk full: later lines may fare better.
                break
        return n_sent

    def _send_some(self, content: bytes) -> int:
        if self._is_patient or not self._may_block:
            return os.write(self._fd, content)
        if not self._has_room(0):
            raise BlockingIOError
        return os.write(self._fd, content[:_PIPE_BUF])

    def _has_room(self, wait_ms: int) -> bool:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        return bool(poll.poll(wait_ms))


class _RootHandler(logging.Handler):
    """Turns records of the standard library's `logging` into lines."""

    def __init__(self, sink: _Sink) -> None:
        super().__init__()
        self._sink = sink

    def emit(self, record: logging.LogRecord) -> None:
        try:
            fields: dict[str, object] = {"logger": record.name, "message": record.getMessage()}
        except Exception as misfit:  # noqa: BLE001 - arguments that do not fit the message
            fields = {
                "logger": record.name,
                "message": _text(record.msg),
                "format_error": _text(misfit),
            }
        fields.update(task_fields.get())
        fields.update(
            (name, value)
            for name, value in record.__dict__.items()
            if name not in _RECORD_ATTRIBUTES and name not in fields
        )
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        self._sink.write(_level_name(record.levelno), "log.written", fields, error)


_RECORD_ATTRIBUTES = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime"}

# What is written to; None until `configure`. Descriptors that must not make anybody wait.
_sink: _Sink | None = None
_impatient: set[int] = set()


def _forward(
    name: str,
    level: str,
    event: str,
    fields: Mapping[str, object],
    error: BaseException | None,
) -> None:
    logger = logging.getLogger(f"orchestrator.{name}")
    if not logger.isEnabledFor(_LEVELS[level]):
        return
    text = " ".join([event, *(f"{key}={_console(value)}" for key, value in fields.items())])
    with contextlib.suppress(Exception):
        logger.log(_LEVELS[level], "%s", text, exc_info=error)


def _level_name(number: int) -> str:
    return next((name for name, least in reversed(_LEVELS.items()) if number >= least), "debug")


def _writes_to_standard_stream(handler: logging.Handler) -> bool:
    # Not isinstance: files are StreamHandlers too, and they are the user's.
    return type(handler) is logging.StreamHandler


def _is_blocking(fd: int) -> bool:
    try:
        return os.get_blocking(fd)
    except OSError:
        return True


def _json(items: Mapping[str, object]) -> str:
    try:
        return msgspec.json.encode(items, enc_hook=_text).decode()
    except Exception:  # noqa: BLE001 - a cycle, a lone surrogate: the line matters more
        return json.dumps({str(name): _text(value) for name, value in items.items()})


def _console(value: object) -> str:
    text = value if isinstance(value, str) else _text(value)
    if text and text.isprintable() and not any(sign in text for sign in ' "='):
        return text
    return json.dumps(text, ensure_ascii=False)


def _text(value: Any) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - a user's class whose __str__ fails
        return f"<{type(value).__name__} that cannot be shown>"
