"""Schedules of an encoder that prunes: counts of tokens for a wanted share of its work, or from counts of pictures."""

from __future__ import annotations

from collections.abc import Sequence

from catp.runtime.bundle.encoder_pruning import CAN_SKIP, EncoderPruningSpec
from catp.runtime.errors import UsageError

STEPS = 60
"""Of a bisection: the fraction is then exact to the last bit."""

CLOSE = 0.02
"""A share of the work that is missed by less is met: counts are whole numbers."""


def even_schedule(spec: EncoderPruningSpec, share: float) -> tuple[int, ...]:
    """The schedule in which each pruning layer keeps the same fraction of its tokens, with this share of the GFLOPs.

    Raises:
        UsageError: it is no share, or so little work can't be reached, as layers before the first that prunes take more.
    """
    if not 0 < share < 1:
        raise UsageError(f"encoder flops {share:g}: a share of the encoder's work, above 0 and below 1")
    low, high = 0.0, 1.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        if spec.gflops(_kept(spec, middle)) > share * spec.gflops_dense:
            high = middle
        else:
            low = middle
    # Of the two neighbours, the nearer one.
    kept = min((_kept(spec, low), _kept(spec, high)), key=lambda k: abs(spec.gflops(k) / spec.gflops_dense - share))
    left = spec.gflops(kept) / spec.gflops_dense
    if left > share + CLOSE:
        raise UsageError(
            f"encoder flops {share:g}: pruning in layers {', '.join(map(str, spec.layers))} leaves at least {left:.2f} of "
            "the encoder's work; give a larger share, or export with more or earlier layers that prune"
        )
    return kept


def _kept(spec: EncoderPruningSpec, fraction: float) -> tuple[int, ...]:
    tokens, kept = spec.sizes.patches, []
    for layer in spec.layers:
        if tokens <= CAN_SKIP:
            raise UsageError(
                f"encoder flops: layer {layer} gets {tokens} image tokens, too few to prune; prune in fewer layers"
            )
        kept.append(min(max(round(fraction * tokens), spec.least_kept(tokens)), tokens - CAN_SKIP))
        tokens = kept[-1] + spec.added
    return tuple(kept)


def mean_schedule(spec: EncoderPruningSpec, counts: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Each layer's mean count over pictures, made a schedule that can be run: at least 1, at most N - 2.

    Args:
        counts: per picture, a count for each layer that prunes; N, all that came in, where it pruned nothing.
    """
    tokens, kept = spec.sizes.patches, []
    for of_layer in zip(*counts):
        mean = round(sum(of_layer) / len(of_layer))
        kept.append(max(spec.least_kept(tokens), min(mean, tokens - CAN_SKIP)))
        tokens = kept[-1] + spec.added
    return tuple(kept)
