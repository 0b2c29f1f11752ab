"""An exception put into words that the database can keep: type, message, traceback.

What the failure leads to is `runner`'s.
"""

from __future__ import annotations

import traceback
from types import TracebackType

from orchestrator.outcome import Failure
from orchestrator.payload import clean_text, qualified_name

MAX_MESSAGE_BYTES = 4 * 1024
MAX_TRACEBACK_BYTES = 16 * 1024


def describe(error: BaseException, *, caller: str | None = None) -> Failure:
    """Describe an exception; never raises, whatever the exception's own code does.

    `caller` is the file that called the handler: frames up to its last one are left out of the
    traceback, so that it begins in the user's code. A message has at most 4 KiB, a traceback at
    most 16 KiB, without its middle where it is longer.
    """
    name = "Exception"
    try:
        name = qualified_name(error)
        return Failure(
            type=name,
            message=cleaned(_message(error), MAX_MESSAGE_BYTES),
            traceback=cleaned(_traceback(error, caller), MAX_TRACEBACK_BYTES),
        )
    except BaseException as broken:  # noqa: BLE001 - its __str__, or what it holds, raised
        return Failure(
            type=name, message=f"(the exception cannot be printed: {type(broken).__name__})"
        )


def cleaned(text: str, limit_bytes: int) -> str:
    """Return text that PostgreSQL takes, of at most `limit_bytes` bytes.

    Of what is too long a quarter is kept from the beginning and the rest from the end, where
    the exception stands.
    """
    encoded = clean_text(text).encode()
    if len(encoded) > limit_bytes:
        kept = limit_bytes - 40  # room for the mark
        head, tail = kept // 4, kept - kept // 4
        mark = b"\n... %d bytes left out ...\n" % (len(encoded) - kept)
        encoded = encoded[:head] + mark + encoded[-tail:]
    return encoded.decode("utf-8", "ignore")


def _message(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"the handler called sys.exit({error.code!r})"
    return str(error)


def _traceback(error: BaseException, caller: str | None) -> str:
    trimmed = _after_last_frame_of(caller, error.__traceback__)
    described = traceback.TracebackException(type(error), error, trimmed, compact=True)
    return "".join(described.format())


def _after_last_frame_of(caller: str | None, begin: TracebackType | None) -> TracebackType | None:
    trimmed, frame = begin, begin
    while frame is not None:
        if frame.tb_frame.f_code.co_filename == caller:
            trimmed = frame.tb_next
        frame = frame.tb_next
    return trimmed
