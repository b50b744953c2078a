"""No merge: tokens that are not kept are gone."""

from __future__ import annotations

from catp.export.encoder_pruning.merges.base import Chosen, Tokens


class Dropped:
    """The kept tokens, as they are."""

    counts_sizes = False
    adds = 0

    def __call__(self, tokens: Tokens, chosen: Chosen) -> Tokens:
        return Tokens(chosen.of(tokens.embeds), chosen.of(tokens.positions), None)
