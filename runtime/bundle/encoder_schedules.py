"""Schedules of an encoder that prunes: counts of tokens for a wanted share of its work, or from counts of pictures."""

from __future__ import annotations

from collections.abc import Sequence

from catp.runtime.bundle.encoder_pruning import CAN_SKIP, EncoderPruningSpec
from catp.runtime.errors import UsageError

STEPS = 60
"""Halvings of a bisection: the fraction is then exact to the last bit."""

CLOSE = 0.02
"""A share of the work that is missed by less is met: counts are whole numbers."""


def even_schedule(spec: EncoderPruningSpec, share: float) -> tuple[int, ...]:
    """The schedule in which each pruning layer keeps the same fraction of its tokens, with this share of the GFLOPs.

    Raises:
        UsageError: it is no share, or so little work can't be reached: layers before the first that prunes take more.
    """
    return shaped_schedule(spec, share, (1.0,) * len(spec.layers))


def shaped_schedule(spec: EncoderPruningSpec, share: float, weights: Sequence[float]) -> tuple[int, ...]:
    """The schedule of layers that prune more or less than each other, with this share of the GFLOPs.

    Args:
        weights: one for each layer that prunes: of its tokens it keeps the fraction f ** weight, with one f for all of
            them; at 0 it leaves out as few as a layer can. Not all are 0.

    Raises:
        UsageError: it is no share, or these layers can't leave so little work, or so much.
    """
    if not 0 < share < 1:
        raise UsageError(f"encoder flops {share:g}: a share of the encoder's work, above 0 and below 1")
    low, high = 0.0, 1.0
    kept = _kept(spec, high, weights)
    if kept is None:
        raise UsageError(
            f"encoder flops {share:g}: {spec.sizes.patches} image tokens are too few to prune in {len(spec.layers)} "
            "layers; export with fewer layers that prune"
        )
    for _ in range(STEPS):
        middle = (low + high) / 2
        tried = _kept(spec, middle, weights)
        if tried is None or spec.gflops(tried) <= share * spec.gflops_dense:
            low = middle
        else:
            high = middle
        # Of all that was met on the way, the nearest.
        if tried is not None and _distance(spec, tried, share) < _distance(spec, kept, share):
            kept = tried
    left = spec.gflops(kept) / spec.gflops_dense
    if left < share - CLOSE:
        raise UsageError(
            f"encoder flops {share:g}: each of {len(spec.layers)} layers leaves out at least {CAN_SKIP} tokens, which "
            f"leaves {left:.2f} of the encoder's work at most; give a smaller share, or prune in fewer layers"
        )
    if left > share + CLOSE:
        raise UsageError(
            f"encoder flops {share:g}: pruning in layers {', '.join(map(str, spec.layers))} leaves at least {left:.2f} "
            "of the encoder's work; give a larger share, or export with other layers that prune"
        )
    return kept


def _distance(spec: EncoderPruningSpec, kept: Sequence[int], share: float) -> float:
    return abs(spec.gflops(kept) / spec.gflops_dense - share)


def _kept(spec: EncoderPruningSpec, fraction: float, weights: Sequence[float]) -> tuple[int, ...] | None:
    """Counts of these powers of a fraction, none so small that a later layer could leave nothing out; None where one
    gets too few tokens to prune any.
    """
    tokens, kept = spec.sizes.patches, []
    for weight, enough in zip(weights, spec.bounds()[0]):
        least = max(spec.least_kept(tokens), enough)
        if least > tokens - CAN_SKIP:
            return None
        kept.append(min(max(round(fraction**weight * tokens), least), tokens - CAN_SKIP))
        tokens = kept[-1] + spec.added
    return tuple(kept)


def mean_schedule(spec: EncoderPruningSpec, counts: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Each layer's mean count over pictures, as near as a schedule can be that every layer can keep.

    Args:
        counts: per picture, a count for each layer that prunes; N, all that came in, where it pruned nothing.
    """
    tokens, kept = spec.sizes.patches, []
    for of_layer, least in zip(zip(*counts), spec.bounds()[0]):
        mean = round(sum(of_layer) / len(of_layer))
        kept.append(max(spec.least_kept(tokens), least, min(mean, tokens - CAN_SKIP)))
        tokens = kept[-1] + spec.added
    return tuple(kept)
