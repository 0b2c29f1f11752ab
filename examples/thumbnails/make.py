"""The client's side: one task for every picture of a folder, then wait and count.

python -m examples.thumbnails.make PICTURES THUMBNAILS
python -m examples.thumbnails.make --samples PICTURES       # makes some pictures to try with
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from examples.thumbnails.tasks import Picture, Thumbnail, shrink
from orchestrator import Client, State, Task

_SUFFIXES = {".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff"}


def pictures(folder: Path, thumbnails: Path) -> list[Picture]:
    """Return what is to be made of a folder, in the order of the names."""
    return [
        Picture(source=str(path.resolve()), target=str(thumbnails.resolve() / f"{path.name}.png"))
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in _SUFFIXES
    ]


def enqueue(client: Client, wanted: list[Picture]) -> list[Task[Thumbnail]]:
    """Enqueue one task per picture; while one for the same file waits, it is that one."""
    return client.enqueue_many(
        shrink, wanted, idempotency_keys=[f"thumbnail {one.target}" for one in wanted]
    )


def make_samples(folder: Path) -> None:
    """Write twelve pictures, and one file that is none."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for number in range(12):
        mandelbrot = Image.effect_mandelbrot(
            (1600, 1200), (-2 + number / 20, -1.2, 1 - number / 10, 1.2), 60
        )
        mandelbrot.save(folder / f"mandelbrot-{number:02}.png")
    (folder / "none.png").write_text("this is no picture")


def main() -> int:
    """Do what the command line says; 1 when a picture could not be made small."""
    parser = argparse.ArgumentParser(description="Make the thumbnails of a folder.")
    parser.add_argument("pictures", type=Path)
    parser.add_argument("thumbnails", type=Path, nargs="?")
    parser.add_argument("--samples", action="store_true", help="make pictures to try with")
    given = parser.parse_args()
    if given.samples:
        make_samples(given.pictures)
        return 0
    if given.thumbnails is None:
        parser.error("say where the thumbnails go")
    with Client.from_config() as client:
        tasks = enqueue(client, pictures(given.pictures, given.thumbnails))
        ended = [client.wait(task) for task in tasks]
    print(dict(Counter(str(task.state) for task in ended)))
    for task in ended:
        if task.state is not State.SUCCEEDED:
            print(f"task {task.id} is {task.state}: {task.error}", file=sys.stderr)
    return 0 if all(task.state is State.SUCCEEDED for task in ended) else 1


if __name__ == "__main__":
    sys.exit(main())
