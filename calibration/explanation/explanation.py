"""The effect of pruning on one question: the tokens kept of an image or frame, where each looks, and both answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from catp.calibration.explanation.patches import EncoderTrace, check_traceable, patch_size, trace_encoder
from catp.calibration.explanation.scored import check_scored, score_twice
from catp.runtime.bundle.manifest import QUERY_ATTENTION, Manifest, Positions
from catp.runtime.errors import UsageError
from catp.runtime.image_sides.pruned_encoder import DEFAULT, EncoderWish
from catp.runtime.inputs.image_files import ImageSource
from catp.runtime.inputs.images import load_image, resize
from catp.runtime.inputs.videos import VideoSource
from catp.runtime.pipeline import Pipeline
from catp.runtime.questions import frames_by_row

MOST_FRAMES = 32
"""Frames of a video that are drawn: each takes a page of its own in the picture."""


@dataclass(frozen=True)
class Explanation:
    """One image and prompt, or frame of a video, answered with all N query tokens and with the k that were kept."""

    manifest: Manifest
    prompt: str
    ratio: float | None  # None: the share of the votes below decided how many are kept
    keep_mass: float | None
    positions: Positions
    pixels: np.ndarray  # uint8 [H, W, 3], resized as the model sees it
    patch: int  # side in pixels
    scores: np.ndarray  # float32 [N], by the bundle's method
    kept: np.ndarray  # int64 [k] ascending
    attention: np.ndarray  # float32 [N, 1 + patches]: CLS first, then patches row by row; sums to 1 over them
    answer: str  # with the kept tokens; of a bundle that scores texts, how well the prompt fits
    full_answer: str  # with all of them
    encoder: EncoderTrace | None = None  # what a vision encoder that prunes left of the image before; None: all of it
    frame: int = 0  # which one of a video; answers are about all of them

    @property
    def agree(self) -> bool:
        return self.answer == self.full_answer

    @property
    def dropped(self) -> np.ndarray:
        """int64 [N - k] ascending."""
        return np.setdiff1d(np.arange(len(self.scores)), self.kept)

    @property
    def best_first(self) -> np.ndarray:
        """All N query tokens, int64 [N], kept ones first; ties by lower index, as in the vote."""
        return np.argsort(-self.scores, kind="stable")

    @property
    def threshold(self) -> float:
        """The lowest score that was kept."""
        return float(self.scores[self.kept].min())

    @property
    def kept_by(self) -> str:
        """The setting that decided how many query tokens are kept, in words."""
        if self.keep_mass is not None:
            return f"{100 * self.keep_mass:g} % of the votes"
        return f"ratio {self.ratio:g}"

    def heat(self, tokens: np.ndarray) -> np.ndarray:
        """Share of attention that falls on each patch, mean over `tokens` int64 [n], float32 [rows, columns]."""
        height, width = self.pixels.shape[:2]
        return self.attention[tokens, 1:].mean(0).reshape(height // self.patch, width // self.patch)

    def cls_share(self, tokens: np.ndarray) -> float:
        """Share of attention that falls on the CLS token, mean over `tokens`."""
        return float(self.attention[tokens, 0].mean())


def explain(
    pipeline: Pipeline,
    image: ImageSource,
    prompt: str,
    ratio: float | None = None,
    keep_mass: float | None = None,
    positions: Positions | None = None,
    encoder: EncoderWish = DEFAULT,
) -> Explanation:
    """Answer one prompt about an image twice, and record what the vote between saw; arguments as of `explain_frames`.

    Raises:
        UsageError: as there, or it is a video of several frames.
        ImageError: as there.
    """
    frames = explain_frames(pipeline, image, prompt, ratio, keep_mass, positions, encoder)
    if len(frames) > 1:
        raise UsageError(f"video: {len(frames)} frames, and one image is to be explained; give one frame")
    return frames[0]


def explain_frames(
    pipeline: Pipeline,
    image: VideoSource,
    prompt: str,
    ratio: float | None = None,
    keep_mass: float | None = None,
    positions: Positions | None = None,
    encoder: EncoderWish = DEFAULT,
) -> list[Explanation]:
    """As `explain`, of each frame of a video, which share their answers; an image is one.

    Args:
        pipeline: of a bundle with diagnostics.
        image: of a model of videos also a folder of frames, an animation or a sequence.
        ratio, keep_mass, positions: as `Pipeline.generate` takes them.
        encoder: what a vision encoder that prunes keeps; both answers are about what it leaves.

    Raises:
        UsageError: the bundle has no diagnostics, or an argument is out of range.
        ImageError: the image can't be read.
    """
    manifest = pipeline.manifest
    if QUERY_ATTENTION not in {tensor.name for tensor in manifest.graphs["qformer_voting"].outputs}:
        raise UsageError(
            f"bundle {pipeline.bundle.path}: exported without diagnostics, so it can't show where query tokens look; "
            "export with --diagnostics (catp-export --diagnostics ...)"
        )
    if not manifest.writes_text:
        check_scored(pipeline, keep_mass, positions)
    pruning = check_traceable(pipeline) if manifest.encoder_pruning is not None else None
    (sources,) = frames_by_row(manifest, [image])
    if len(sources) > MOST_FRAMES:
        raise UsageError(f"video: {len(sources)} frames, and {MOST_FRAMES} are shown at most; give fewer")
    pictures = [load_image(source) for source in sources]
    frames, queries = len(pictures), manifest.pruning.num_query_tokens
    asked: VideoSource = pictures[0] if manifest.model.frames is None else pictures
    encoded = pipeline.encode(pipeline.preprocess(pictures), [prompt] * frames, encoder)
    votes = pipeline.votes(encoded)
    if manifest.writes_text:
        # The answer is asked for as catp-run does, so the picture can't show another one.
        (found,) = pipeline.generate([asked], [prompt], ratio, positions, keep_mass=keep_mass, encoder=encoder)
        everything = votes.joined(frames).keep(np.arange(frames * queries)[None])
        prompts, limit = [pipeline.tokenize(prompt)], manifest.text.max_new_tokens
        full_ids = pipeline.decode(everything, prompts, limit, positions).token_ids[0]
        answer, full, kept = found.answer, pipeline.detokenize(full_ids), np.array(found.kept_indices)
    else:
        answer, full, kept = score_twice(pipeline, pictures[0], prompt, ratio, encoder)
    if ratio is None and keep_mass is None:
        ratio, keep_mass = manifest.pruning.ratio, manifest.pruning.keep_mass
    maps = votes.outputs[QUERY_ATTENTION]
    traces = [None if pruning is None else trace_encoder(pruning, encoded, encoder, frame) for frame in range(frames)]
    maps = np.stack([on if trace is None else trace.on_patches(on) for on, trace in zip(maps, traces)])
    return [
        Explanation(
            manifest,
            prompt,
            ratio if keep_mass is None else None,
            keep_mass,
            positions or manifest.pruning.positions,
            resize(picture, manifest.image),
            patch_size(manifest.image, maps.shape[2] - 1),
            votes.scores[frame],
            kept[kept // queries == frame] % queries,
            maps[frame],
            answer,
            full,
            traces[frame],
            frame,
        )
        for frame, picture in enumerate(pictures)
    ]
