"""What the program that enqueues and the workers have in common: one thumbnail as a task.

Light on purpose: importing it loads neither Pillow nor a database driver.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator import TaskType


@dataclass(frozen=True)
class Picture:
    """A picture to make small. Both files are passed by reference: their paths.

    The thumbnail fits into `width` x `height` pixels; the suffix of `target` chooses its format.
    """

    source: str
    target: str
    width: int = 256
    height: int = 256


@dataclass(frozen=True)
class Thumbnail:
    """What was made. Sizes in pixels and bytes."""

    path: str
    width: int
    height: int
    size_bytes: int


shrink = TaskType("image:shrink", Picture, Thumbnail, queue="images")
