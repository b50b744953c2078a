"""Statements about two images: what a bundle makes of them against the checkpoint."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from catp.export.verification.expected import ExpectedJudgements
from catp.export.verification.measures import check, relative_error
from catp.runtime.bundle.manifest import ParityCheck
from catp.runtime.matching.base import probability_of_yes
from catp.runtime.pipeline import Pipeline


def check_judgements(pipeline: Pipeline, expected: ExpectedJudgements, limit: float) -> Iterator[ParityCheck]:
    """The graph given PyTorch's image tokens, as a ragged batch; then the chain from pictures and statements."""
    manifest, judging = pipeline.manifest, pipeline.judging
    dtype = manifest.graphs["statement_encoder"].input("first_image_embeds").dtype
    first, second = (expected.image_embeds[place::2].astype(dtype) for place in (0, 1))
    found = judging.score(first, second, expected.prompt_ids)
    error = relative_error(found, expected.truth_logits)
    yield check("statement_encoder", "truth_logits: relative error", error, limit)
    pairs = [(sample.frames[0], sample.frames[1]) for sample in expected.samples]
    statements = [sample.prompt for sample in expected.samples]
    wanted = probability_of_yes(expected.truth_logits)
    ways = {"one by one": [pipeline.judge([pair], [said])[0] for pair, said in zip(pairs, statements)]}
    pruning = manifest.encoder_pruning
    if pruning is None or pruning.form != "dynamic":  # where pairs of a batch decide how much each other keeps
        ways["as a ragged batch"] = pipeline.judge(pairs, statements)
    for how, verdicts in ways.items():
        off = np.abs(np.array([verdict.probability_of_true for verdict in verdicts]) - wanted).max()
        yield check("pipeline", f"{how}: probability of true, difference", off, limit)
