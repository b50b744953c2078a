"""The work of whole answers in each setting of a vision encoder, from what was kept while they were given."""

from __future__ import annotations

from catp.calibration.benchmark.costs.geometry import read_geometry
from catp.calibration.benchmark.costs.whole import answer_gflops
from catp.calibration.encoder.answering import Answered
from catp.runtime.pipeline import Pipeline


def answers_gflops(pipeline: Pipeline, answered: Answered) -> list[float]:
    """Work of an answer up to its first token, in GFLOPs for each setting: of a prompt, and a video, of mean length.

    Args:
        pipeline: a bundle of these sizes, pruned or not.
    """
    manifest, geometry = pipeline.manifest, read_geometry(pipeline.bundle)
    kept = [manifest.tokens] * len(answered.counts) if answered.tokens_kept is None else answered.tokens_kept.tolist()
    lengths = round(answered.prompt_tokens), max(1, round(answered.frames))
    return [
        answer_gflops(manifest, geometry, counts, 1 - tokens / manifest.tokens, *lengths)
        for counts, tokens in zip(answered.counts, kept)
    ]
