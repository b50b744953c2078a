"""Calls of the checks to all graphs but the last, graph by graph: graphs that take turns are each loaded once for them.

What is called here is called again by the checks, with the same inputs, and answered from memory (`turns.py`). A call
that is missing here is computed there: it costs another loading, and changes nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

from catp.export.verification.expected import (
    MAX_NEW_TOKENS,
    Expected,
    ExpectedAnswers,
    ExpectedImages,
    ExpectedMatches,
)
from catp.runtime.bundle.generation_settings import GREEDY
from catp.runtime.bundle.manifest import Positions
from catp.runtime.image_sides.query_tokens import Encoded, Pruned
from catp.runtime.language_models.encoder_decoder import EncoderDecoder
from catp.runtime.pipeline import Pipeline
from catp.runtime.questions import find_repeated


def rehearse(pipeline: Pipeline, expected: ExpectedImages, groups: Sequence[Sequence[int]]) -> None:
    """Encode all pictures, then vote on all, then encode all texts.

    Args:
        groups: rows of `expected.samples` that are asked together.
    """
    pipeline.encode(expected.pixel_values, expected.frame_prompts)
    everything = _encode(pipeline, expected, range(len(expected.samples)))
    if isinstance(expected, ExpectedMatches):
        pipeline.prune(everything, expected.num_kept)
    if not isinstance(expected, Expected | ExpectedAnswers):
        return
    # As `Pipeline.generate` does: a picture that is given twice is encoded once.
    prompts = [sample.prompt for sample in expected.samples]
    read = prompts if pipeline.manifest.reads_instruction else None
    found = [
        find_repeated([tuple(expected.samples[row].frames) for row in group], read and [read[row] for row in group])
        for group in groups
    ]
    encoded = [
        _encode(pipeline, expected, [group[place] for place in distinct])
        for group, (distinct, _) in zip(groups, found, strict=True)
    ]
    pruned = [pipeline.prune(one, pipeline.num_kept(0)) for one in encoded]
    if isinstance(expected, Expected):
        pipeline.prune(everything, expected.num_kept)
    if not isinstance(pipeline.language_model, EncoderDecoder):
        return
    for group, (_, images), tokens in zip(groups, found, pruned, strict=True):
        if (vote := pipeline.manifest.vote) is not None:
            tokens = tokens.joined(expected.frames, vote.num_query_tokens)
        _read(pipeline, expected, group, tokens, None, images)
    if isinstance(expected, Expected):
        embeds = expected.sample_kept_embeds.astype(pipeline.manifest.tensor("kept_embeds").dtype)
        for mode in expected.pruned:
            for group in groups:
                rows = list(group)
                kept = Pruned(expected.sample_kept[rows], embeds[rows], expected.frames)
                _read(pipeline, expected, group, kept, mode, None)


def _encode(pipeline: Pipeline, expected: ExpectedImages, rows: Sequence[int]) -> Encoded:
    samples = [expected.samples[row] for row in rows]
    pixels = pipeline.preprocess([frame for sample in samples for frame in sample.frames])
    return pipeline.encode(pixels, [sample.prompt for sample in samples for _ in sample.frames])


def _read(
    pipeline: Pipeline,
    expected: ExpectedImages,
    rows: Sequence[int],
    tokens: Pruned,
    mode: Positions | None,
    images: Sequence[int] | None,
) -> None:
    ids = [expected.prompt_ids[row] for row in rows]
    request = pipeline.request(tokens, ids, MAX_NEW_TOKENS, mode, GREEDY, images)
    assert isinstance(pipeline.language_model, EncoderDecoder)
    pipeline.language_model.encode(request.batch)
