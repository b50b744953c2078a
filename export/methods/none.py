"""No voting: every query token is kept."""

from __future__ import annotations

import torch


class KeepAll:
    """All scores are 0. For bundles that never prune: the vote costs nothing where there is none."""

    name = "none"

    def scores(self, maps: list[torch.Tensor]) -> torch.Tensor:
        batch, _, queries, _ = maps[0].shape
        return torch.zeros(batch, queries)
