"""From a pruning ratio, or a share of the votes, to the tokens that are kept: the one place that knows."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence

import numpy as np

from catp.runtime.bundle.encoder_pruning import EncoderPruningSpec
from catp.runtime.bundle.manifest import Manifest, PruningSpec
from catp.runtime.errors import UsageError


def check_ratio(ratio: float) -> float:
    """The ratio itself, the fraction of query tokens removed.

    Raises:
        UsageError: it is not a number with 0 <= ratio < 1.
    """
    if not (isinstance(ratio, numbers.Real) and 0 <= ratio < 1):  # NaN fails both comparisons
        raise UsageError(f"ratio {ratio}: a pruning ratio is the fraction removed, 0 <= ratio < 1")
    return float(ratio)


def num_kept(ratio: float, num_query_tokens: int) -> int:
    """How many of `num_query_tokens` stay: round half up, at least one (32 -> 16 at 0.5, 3 at 0.9)."""
    return max(1, math.floor((1 - check_ratio(ratio)) * num_query_tokens + 0.5))


def check_mass(mass: float | None) -> float | None:
    """The share of the votes to keep itself.

    Raises:
        UsageError: it is not a number with 0 < mass <= 1.
    """
    if mass is not None and not (isinstance(mass, numbers.Real) and 0 < mass <= 1):
        raise UsageError(f"keep mass {mass}: the share of the votes that is kept, 0 < mass <= 1")
    return mass


def num_kept_by_mass(token_scores: np.ndarray, mass: float) -> np.ndarray:
    """How many tokens each image needs until those kept have `mass` of its votes, int64 [B], at least one.

    Args:
        token_scores: [B, N], none negative.
    """
    best_first = -np.sort(-token_scores.astype(np.float64), axis=1)
    total = best_first.sum(1, keepdims=True)
    reached = np.cumsum(best_first, axis=1) / np.where(total > 0, total, 1)
    # A sum that should reach the mass exactly may fall short by its rounding.
    short = (reached < mass * (1 - 1e-9)).sum(1)
    return np.where(total[:, 0] > 0, np.minimum(short + 1, token_scores.shape[1]), token_scores.shape[1])


def top_indices(token_scores: np.ndarray, kept: int) -> np.ndarray:
    """Indices int64 [B, kept] of the highest scores, ascending, ties by lower index: what the graph's TopK keeps."""
    return np.sort(np.argsort(-token_scores, axis=1, kind="stable")[:, :kept], axis=1)


def top_by_mass(token_scores: np.ndarray, mass: float) -> list[np.ndarray]:
    """Ascending indices int64 [k] of the fewest tokens that have `mass` of an image's votes, for each; k differs.

    Args:
        token_scores: [B, N], none negative.
    """
    counts = num_kept_by_mass(token_scores, mass)
    return [top_indices(row[None], int(count))[0] for row, count in zip(token_scores, counts)]


def joined_frames(kept: Sequence[np.ndarray], frames: int, num_query_tokens: int) -> list[np.ndarray]:
    """The kept tokens of each video, of all its frames, int64 [k]: query token i of frame f becomes f * N + i.

    Args:
        kept: ascending indices of each frame, those of a video one after another.
        frames: of each video.
    """
    first = [frame * num_query_tokens for frame in range(frames)]
    return [
        np.concatenate([of_frame + begin for of_frame, begin in zip(kept[start : start + frames], first)])
        for start in range(0, len(kept), frames)
    ]


def describe_default(manifest: Manifest, positions: bool = False) -> str:
    """The tokens that a bundle keeps by default, in words: query tokens, image tokens inside the encoder, or both.

    Args:
        positions: whether the positions of kept query tokens are named too.
    """
    found = []
    if manifest.vote is not None:
        found.append(_describe_vote(manifest.vote) + (f", {manifest.vote.positions} positions" if positions else ""))
    if manifest.encoder_pruning is not None:
        found.append(_describe_encoder(manifest.encoder_pruning))
    return "; ".join(found) or "every image token is kept"


def _describe_vote(vote: PruningSpec) -> str:
    if vote.keep_mass is not None:
        return f"{vote.method} keeps the query tokens with {100 * vote.keep_mass:g} % of each image's votes"
    kept = num_kept(vote.ratio, vote.num_query_tokens)
    return f"{vote.method} keeps {kept} of {vote.num_query_tokens} query tokens at ratio {vote.ratio:g}"


def _describe_encoder(encoder: EncoderPruningSpec) -> str:
    if encoder.kept_tokens is None:
        return f"{encoder.rule} counts image tokens at temperature {encoder.temperature:g}"
    share = encoder.gflops(encoder.kept_tokens) / encoder.gflops_dense
    last = encoder.tokens_by_layer(encoder.kept_tokens)[-1][1]
    total = encoder.sizes.patches + 1
    return f"{encoder.rule} leaves {last} of {total} image tokens, {share:.0%} of the encoder's work"
