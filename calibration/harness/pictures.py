"""Pictures of requests, as the harness hands them over."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from catp.runtime.bundle.manifest import Manifest
from catp.runtime.errors import UsageError
from catp.runtime.files import is_dir
from catp.runtime.inputs.images import load_image
from catp.runtime.inputs.videos import VideoSource


def read_pictures(visuals: Sequence[Any] | None, manifest: Manifest) -> VideoSource:
    """The one picture of a request, upright and RGB; of a model of videos its frames.

    Args:
        visuals: what a task's doc_to_visual gives: PIL images, or the name of a file.

    Raises:
        UsageError: there is none, there are too many, or one is no picture.
        ImageError: one can't be read.
    """
    found = list(visuals or ())
    family, takes_frames = manifest.model.family, manifest.model.frames is not None
    if not found:
        raise UsageError(f"no picture, and {family} is always asked about one; leave this task out")
    if takes_frames and len(found) == 1 and isinstance(found[0], str) and is_dir(Path(found[0])):
        return found[0]
    for visual in found:
        if not isinstance(visual, Image.Image):
            what = f"the file {visual}" if isinstance(visual, str) else f"a {type(visual).__name__}"
            raise UsageError(f"{what}: neither video files nor sounds are decoded here; leave this task out")
    if takes_frames:
        return [load_image(frame) for frame in found]
    if len(found) > 1:
        raise UsageError(f"{len(found)} pictures, and {family} sees one; leave this task out")
    return load_image(found[0])


def merge_equal(sources: Sequence[VideoSource]) -> list[VideoSource]:
    """The same sources, with one object for pictures of equal pixels: `Pipeline.generate` encodes each object once.

    Tasks ask several questions about one picture, and decode it for each.
    """
    known: dict[Any, VideoSource] = {}
    return [known.setdefault(_content(source), source) for source in sources]


def _content(source: VideoSource) -> Any:
    return (source.size, source.tobytes()) if isinstance(source, Image.Image) else id(source)
