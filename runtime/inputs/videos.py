"""Videos: sequences of frames, each of them a picture. Nothing here decodes a video file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from catp.runtime.errors import ImageError, UsageError
from catp.runtime.files import is_dir
from catp.runtime.inputs.images import ImageSource

VideoSource = ImageSource | Sequence[ImageSource]
"""Frames in their order, or a folder with a picture for each; a single picture is a video of one frame."""


def frames_of(source: VideoSource) -> tuple[ImageSource, ...]:
    """A video's frames. A folder's are its files in the order of their names, hidden ones left out.

    Raises:
        UsageError: there is no frame, or one is neither a file nor a PIL image.
        ImageError: the folder can't be read.
    """
    if isinstance(source, str | os.PathLike):
        return _of_folder(Path(source)) if is_dir(Path(source)) else (source,)
    if isinstance(source, Image.Image):
        return (source,)
    frames = tuple(source) if isinstance(source, Sequence) else (source,)
    if not frames:
        raise UsageError("video: it has no frames; give at least one")
    for number, frame in enumerate(frames):
        if not isinstance(frame, str | os.PathLike | Image.Image):
            raise UsageError(f"video: frame {number} is a {type(frame).__name__}; give a file or a PIL image")
    return frames


def _of_folder(folder: Path) -> tuple[ImageSource, ...]:
    try:
        frames = tuple(sorted(path for path in folder.iterdir() if not path.name.startswith(".")))
    except OSError as error:
        raise ImageError(f"video {folder}: the folder can't be read ({error})") from None
    if not frames:
        raise UsageError(f"video {folder}: the folder is empty; give one with a picture for each frame")
    return frames
