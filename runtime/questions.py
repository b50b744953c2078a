"""Questions: an image or a video, a prompt, and everything else that decides the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from catp.runtime.bundle.generation_settings import GenerationSettings
from catp.runtime.bundle.manifest import Manifest, Positions
from catp.runtime.errors import UsageError
from catp.runtime.image_sides.base import ImageSide
from catp.runtime.image_sides.pruned_encoder import DEFAULT, EncoderWish
from catp.runtime.inputs.image_files import ACCEPTED, ImageSource, identity_of, is_one
from catp.runtime.inputs.videos import VideoSource, frames_of


@dataclass(frozen=True)
class Wishes:
    """Settings of one question; questions that share them may be answered as one batch."""

    settings: GenerationSettings  # how tokens are chosen
    ratio: float | None = None  # fraction of query tokens removed; None: the bundle's default
    keep_mass: float | None = None  # share of the votes to keep, in place of the ratio
    positions: Positions | None = None  # None: the bundle's default
    max_new_tokens: int | None = None  # None: the bundle's default
    encoder: EncoderWish = DEFAULT  # what an encoder that prunes keeps

    def pruning(self, manifest: Manifest, image_side: ImageSide) -> tuple[int, float | None]:
        """How many tokens of an image are kept, or the share of the votes in its place, and the most that it may keep.

        Raises:
            UsageError: both are given, one is out of range, or the bundle can't keep a share.
        """
        mass = self.keep_mass
        if self.ratio is not None and mass is not None:
            raise UsageError(f"ratio {self.ratio} and keep mass {mass}: give one of them")
        if self.ratio is None and mass is None and manifest.vote is not None:
            mass = manifest.vote.keep_mass
        kept = image_side.num_kept(self.ratio)
        image_side.check_mass(mass)
        return kept if mass is None else manifest.tokens, mass

    def check_frames(self, manifest: Manifest, frames: int, kept: int) -> None:
        """Raises UsageError where a video has more frames than the language model has positions for."""
        if frames == 1:
            return
        mode = position_mode(manifest, self.positions)
        each = manifest.pruning.num_query_tokens if mode == "original" else kept
        most = manifest.text.max_positions
        if most is not None and frames * each >= most:
            raise UsageError(
                f"video: {frames} frames take {each} positions each, and this model has {most} with the prompt's; give "
                f"at most {(most - 1) // each} frames"
            )


@dataclass(frozen=True)
class Question:
    """A prompt about an image or a video."""

    source: VideoSource
    prompt: str
    wishes: Wishes


def position_mode(manifest: Manifest, asked: Positions | None) -> Positions:
    """The positions asked for, or else the bundle's; raises UsageError where they are unknown, or it has none."""
    if manifest.vote is None and asked == "compact":
        raise UsageError(f"positions {asked}: {manifest.model.family} reads image tokens that have none; leave it out")
    mode = asked or (manifest.vote.positions if manifest.vote else "original")
    if mode not in get_args(Positions):
        raise UsageError(f"positions {mode!r}: unknown; accepted: {', '.join(get_args(Positions))}")
    return mode


def frames_by_row(manifest: Manifest, sources: Sequence[VideoSource]) -> list[tuple[ImageSource, ...]]:
    """The frames of each source, equally many; an image is one frame.

    Raises:
        UsageError: a sequence where the model takes images, or videos of different length.
        ImageError: a video can't be read.
    """
    if manifest.model.frames is None:
        for source in sources:
            if isinstance(source, Sequence) and not is_one(source):
                raise UsageError(
                    f"image: a sequence of {len(source)}, and {manifest.model.family} takes one image a prompt; "
                    f"accepted: {ACCEPTED}"
                )
        return [(source,) for source in sources]  # type: ignore[misc]
    once = {identity_of(source): frames_of(source) for source in {identity_of(s): s for s in sources}.values()}
    videos = [once[identity_of(source)] for source in sources]
    lengths = sorted({len(frames) for frames in videos})
    if len(lengths) > 1:
        raise UsageError(
            f"videos of {', '.join(map(str, lengths))} frames: a batch has equally many in each; give them one by one"
        )
    return videos


def find_repeated(
    videos: Sequence[tuple[ImageSource, ...]], prompts: Sequence[str] | None
) -> tuple[list[int], list[int]]:
    """The rows in which each image or video is first given, and for every row which of these it is.

    Paths are compared by name, other sources by identity.

    Args:
        prompts: of a Q-Former that reads them too: then an image with another prompt is another one.
    """
    found: dict[tuple[tuple[str | int, ...], str], int] = {}
    first: list[int] = []
    which = []
    for row, frames in enumerate(videos):
        key = (tuple(identity_of(frame) for frame in frames), prompts[row] if prompts else "")
        if key not in found:
            found[key] = len(first)
            first.append(row)
        which.append(found[key])
    return first, which
