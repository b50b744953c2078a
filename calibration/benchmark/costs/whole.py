"""The work of a whole answer up to its first token, or of a text's scores."""

from __future__ import annotations

from collections.abc import Sequence

from catp.calibration.benchmark.costs.base import Workload
from catp.calibration.benchmark.costs.cost import cost_of
from catp.calibration.benchmark.costs.geometry import Geometry
from catp.runtime.bundle.manifest import Manifest
from catp.runtime.pruning import num_kept

MADTP_COUNT = (
    "GFLOPs: of the vision encoder for one picture. in all: of an answer until its first token, or of a text's scores. "
    "as MADTP: the same as its scripts count, a multiply-add once, not twice; the little that they add for "
    "normalisation is left out."
)
"""Columns of tables, explained."""


def answer_gflops(
    manifest: Manifest,
    geometry: Geometry,
    kept_tokens: Sequence[int] | None,
    ratio: float,
    prompt_tokens: int,
    frames: int = 1,
) -> float:
    """GFLOPs of matrix products for one image or video and a prompt of that length, a multiply-add being two.

    Later tokens are left out: how many there are depends on the answer, and pruning hardly changes their arithmetic.

    Args:
        kept_tokens: a schedule of the encoder; None: it prunes nothing.
        ratio: of query tokens left out; of a bundle that votes for none, 0.
        frames: of the video.
    """
    spec = manifest.encoder_pruning
    assert spec is not None or kept_tokens is None
    pruning = (
        None if kept_tokens is None or spec is None else spec.model_copy(update={"kept_tokens": tuple(kept_tokens)})
    )
    update: dict[str, object] = {"encoder_pruning": pruning}
    if manifest.model.frames is not None:
        update["model"] = manifest.model.model_copy(update={"frames": frames})
    of_schedule = manifest.model_copy(update=update)
    workload = Workload(1, frames * num_kept(ratio, manifest.tokens), prompt_tokens, new_tokens=1)
    return sum(stage.flops for stage in cost_of(of_schedule, geometry, workload, ratio).stages.values()) / 1e9
