"""Videos: sequences of frames, each of them a picture. Nothing here decodes a video file."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from catp.runtime.errors import ImageError, UsageError
from catp.runtime.files import is_dir
from catp.runtime.inputs.image_files import ACCEPTED, ImageSource, is_one
from catp.runtime.inputs.images import load_frames

VideoSource = ImageSource | Sequence[ImageSource]
"""Frames in their order, a folder with a picture for each, or an animation; another picture is a video of one frame."""


def frames_of(source: VideoSource) -> tuple[ImageSource, ...]:
    """A video's frames. A folder's are its files in the natural order of their names (2 before 10), hidden ones left
    out.

    Raises:
        UsageError: there is no frame, or one is nothing that a picture can be in.
        ImageError: the folder can't be read, or what is no sequence is no picture.
    """
    if isinstance(source, str | os.PathLike) and is_dir(Path(os.fsdecode(source))):
        return _of_folder(Path(os.fsdecode(source)))
    if is_one(source) or not isinstance(source, Sequence):
        return tuple(load_frames(cast(ImageSource, source)))
    frames = cast(Sequence[ImageSource], source)
    if not frames:
        raise UsageError("video: it has no frames; give at least one")
    for number, frame in enumerate(frames):
        if not is_one(frame):
            raise UsageError(
                f"video: frame {number} is a {type(frame).__name__}; give a file or a PIL image (accepted: {ACCEPTED})"
            )
    return tuple(frames)


def _of_folder(folder: Path) -> tuple[ImageSource, ...]:
    try:
        frames = [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError as error:
        raise ImageError(f"video {folder}: the folder can't be read ({error})") from None
    if not frames:
        raise UsageError(f"video {folder}: the folder is empty; give one with a picture for each frame")
    return tuple(sorted(frames, key=lambda path: natural_order(path.name)))


def natural_order(name: str) -> tuple[list[str | int], str]:
    """A name's key for sorting: its numbers count as such. Names that differ in zeros alone keep one order."""
    texts_and_numbers = re.split("([0-9]+)", name)  # in turns, a text first
    return [int(part) if place % 2 else part for place, part in enumerate(texts_and_numbers)], name
