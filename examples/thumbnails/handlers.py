"""The handler: reads a picture and writes its thumbnail. Imported by workers only.

A picture is data from strangers. What can be known before it is decoded is checked before: the
size of the file, then the pixels that its header promises. A file that is no picture, or one that
is too large, is dead at once; an error of the disk is tried again.

The thumbnail is written beside its place and renamed into it, so that a reader sees the old file or
the new one, and a worker may be killed at any instruction.
"""

from __future__ import annotations

import io
import os
import struct
import warnings
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from examples.thumbnails.tasks import Picture, Thumbnail, shrink
from orchestrator import Context, Dead, Mux, Retry

mux = Mux()

# Decoded, a pixel takes up to 4 bytes, and turning a picture needs it twice: about 320 MB.
MAX_FILE_BYTES, MAX_PIXELS = 32 * 2**20, 40_000_000

# What Pillow raises for files that are broken, cut off or made to harm.
_BROKEN = (
    OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, OverflowError,
    struct.error, Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip


@mux.handler(shrink, retry=Retry(max_attempts=5), timeout="1m")
def shrink_picture(ctx: Context[None], payload: Picture) -> Thumbnail:
    """Make the thumbnail of one picture, anew where it is there already."""
    target = Path(payload.target)
    if min(payload.width, payload.height) < 1:
        raise Dead(f"{payload.width} x {payload.height}: must be at least 1 x 1 pixel")
    content = _read(Path(payload.source))
    try:
        small = _shrunk(content, (payload.width, payload.height))
    except UnidentifiedImageError as error:
        # Its own text names an address in memory, and errors are counted by their texts.
        raise Dead(
            f"{payload.source} cannot be decoded: no kind of picture is like this"
        ) from error
    except _BROKEN as error:
        # It lies in memory by now, so it is the picture and not the disk.
        raise Dead(f"{payload.source} cannot be decoded: {error}") from error
    encoded = _encoded(small, target)
    _write(target, encoded, part=f".{target.name}.{ctx.task_id}-", attempt=ctx.attempt)
    ctx.log.info("thumbnail.written", path=payload.target, width=small.width, height=small.height)
    return Thumbnail(payload.target, small.width, small.height, len(encoded))


def _read(source: Path) -> bytes:
    with source.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_FILE_BYTES:
            raise Dead(f"{source} has {size} bytes, and at most {MAX_FILE_BYTES} are decoded")
        return file.read(MAX_FILE_BYTES)


def _shrunk(content: bytes, box: tuple[int, int]) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        # Reads the header, and decodes nothing yet.
        picture: Image.Image = Image.open(io.BytesIO(content))
    if picture.width * picture.height > MAX_PIXELS:
        raise ValueError(
            f"{picture.width} x {picture.height} pixels, and at most {MAX_PIXELS} are decoded"
        )
    # JPEG decodes at a half, a quarter or an eighth for a fraction of the time and memory.
    picture.draft("RGB", box)
    picture = ImageOps.exif_transpose(picture)
    if picture.mode not in ("RGB", "RGBA", "L"):
        picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    picture.thumbnail(box)
    return picture


def _encoded(picture: Image.Image, target: Path) -> bytes:
    format = Image.registered_extensions().get(target.suffix.lower())
    if format is None or format not in Image.SAVE:
        raise Dead(f"{target}: the suffix {target.suffix!r} names no format that can be written")
    if format == "JPEG" and picture.mode == "RGBA":
        # JPEG has no transparency: on white, as on paper.
        paper = Image.new("RGB", picture.size, "white")
        paper.paste(picture, mask=picture)
        picture = paper
    buffer = io.BytesIO()
    picture.save(buffer, format)
    return buffer.getvalue()


def _write(target: Path, content: bytes, *, part: str, attempt: int) -> None:
    """Put the file into its place, whole or not at all.

    Each attempt has a file of its own: one that was given up may still be running.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.iterdir():
        if left.name.startswith(part):
            left.unlink(missing_ok=True)  # of an attempt that was killed
    beside = target.parent / f"{part}{attempt}"
    with beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(target)
