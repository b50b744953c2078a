"""The texts that a bundle answers with, once tokens are kept: written, or the likeliest of given ones."""

from __future__ import annotations

from collections.abc import Sequence

from catp.calibration.accuracy.asking import Asking
from catp.runtime.bundle.manifest import Positions
from catp.runtime.image_sides.query_tokens import Pruned
from catp.runtime.pipeline import Pipeline


def write_answers(
    pipeline: Pipeline,
    pruned: Pruned,
    prompts: Sequence[Sequence[int]],
    asking: Asking,
    seed: int,
    first: str,
    positions: Positions | None = None,
    images: Sequence[int] | None = None,
) -> list[str]:
    """One text for each prompt.

    Args:
        prompts: token ids of each.
        seed: of the evaluation, for what is drawn.
        first: id of the first prompt's question.
        positions: of kept tokens; None: the bundle's.
        images: per prompt, the row of `pruned` that it is about; None: row by row.
    """
    if asking.answers is not None:
        ranked = pipeline.rank_pruned(pruned, prompts, asking.answers, images)
        return [best[0].answer for best in ranked]
    settings = asking.settings(seed, first)
    generation = pipeline.decode(pruned, prompts, asking.max_new_tokens, positions, settings, images)
    return [pipeline.detokenize(ids) for ids in generation.token_ids]
