"""The example: what is made of a picture, what is refused, and what a killed attempt leaves."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from examples.thumbnails import handlers, make
from examples.thumbnails.tasks import Picture, Thumbnail
from orchestrator import Context, Dead


def shrunk(source: Path, target: Path, *, width: int = 64, height: int = 64) -> Thumbnail:
    ctx: Context[None] = Context(task_id=17, type="image:shrink", attempt=2)
    return handlers.shrink_picture(ctx, Picture(str(source), str(target), width, height))


def picture(path: Path, size: tuple[int, int] = (400, 200), mode: str = "RGB") -> Path:
    Image.new(mode, size, 1).save(path)
    return path


def header_only(path: Path, width: int, height: int) -> Path:
    """Write a PNG that promises many pixels in a few bytes."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", len(chunk) - 4)
        + chunk
        + struct.pack(">I", zlib.crc32(chunk))
        + struct.pack(">I", 100)
        + b"IDAT"
    )
    return path


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "LA", "I;16"])
def test_picture_of_any_kind_fits_into_the_box(tmp_path: Path, mode: str, suffix: str) -> None:
    made = shrunk(picture(tmp_path / "a.png", mode=mode), tmp_path / f"deep/small.{suffix}")

    with Image.open(made.path) as small:
        assert small.size == (made.width, made.height) == (64, 32)
    assert Path(made.path).stat().st_size == made.size_bytes


def test_picture_smaller_than_the_box_is_not_enlarged(tmp_path: Path) -> None:
    made = shrunk(picture(tmp_path / "a.png", (10, 5)), tmp_path / "small.png")

    assert (made.width, made.height) == (10, 5)


def test_picture_is_turned_as_its_camera_was_held(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the orientation: a quarter turn
    Image.new("RGB", (400, 200)).save(tmp_path / "a.jpg", exif=exif)

    made = shrunk(tmp_path / "a.jpg", tmp_path / "small.jpg")

    assert (made.width, made.height) == (32, 64)


def test_second_run_gives_the_same_file(tmp_path: Path) -> None:
    source, target = picture(tmp_path / "a.png"), tmp_path / "small.png"
    shrunk(source, target)
    first = target.read_bytes()

    shrunk(source, target)

    assert target.read_bytes() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "small.png"]


@pytest.mark.parametrize("content", [b"", b"this is no picture", b"\x89PNG\r\n\x1a\n\0\0"])
def test_file_that_is_no_picture_is_dead(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)

    with pytest.raises(Dead, match=r"a\.png cannot be decoded"):
        shrunk(tmp_path / "a.png", tmp_path / "small.png")


def test_picture_that_is_cut_off_is_dead(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.effect_noise((300, 300), 90).save(path)
    path.write_bytes(path.read_bytes()[:-2000])

    with pytest.raises(Dead, match="cannot be decoded"):
        shrunk(path, tmp_path / "small.png")


@pytest.mark.parametrize("side", [7_000, 20_000, 60_000])
def test_picture_of_too_many_pixels_is_dead_before_it_is_decoded(tmp_path: Path, side: int) -> None:
    path = header_only(tmp_path / "a.png", side, side)

    with pytest.raises(Dead, match="pixels"):
        shrunk(path, tmp_path / "small.png")


def test_file_that_is_too_large_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handlers, "MAX_FILE_BYTES", 10)

    with pytest.raises(Dead, match="at most 10"):
        shrunk(picture(tmp_path / "a.png"), tmp_path / "small.png")


@pytest.mark.parametrize("name", ["small.txt", "small"])
def test_suffix_that_names_no_format_is_dead(tmp_path: Path, name: str) -> None:
    with pytest.raises(Dead, match="names no format"):
        shrunk(picture(tmp_path / "a.png"), tmp_path / name)


def test_missing_file_is_an_ordinary_failure(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        shrunk(tmp_path / "none.png", tmp_path / "small.png")


def test_disk_that_fails_leaves_the_old_thumbnail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "small.png"
    target.write_bytes(b"old")

    def fail(fd: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(handlers.os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        shrunk(picture(tmp_path / "a.png"), target)

    assert target.read_bytes() == b"old"


def test_leavings_of_a_killed_attempt_are_removed_and_those_of_other_tasks_are_not(
    tmp_path: Path,
) -> None:
    mine, other = tmp_path / ".small.png.17-1", tmp_path / ".small.png.171-1"
    mine.write_bytes(b"half")
    other.write_bytes(b"half")

    shrunk(picture(tmp_path / "a.png"), tmp_path / "small.png")

    assert not mine.exists()
    assert other.exists()


def test_pictures_of_a_folder_are_found_and_other_files_are_not(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "c.txt"):
        (tmp_path / name).touch()

    found = make.pictures(tmp_path, tmp_path / "small")

    assert [Path(one.target).name for one in found] == ["a.png.png", "b.JPG.png"]
