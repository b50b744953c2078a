"""A baseline that looks at nothing: query tokens are kept in a random order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from catp.export.voting.base import Evidence, VotingMethod


@dataclass(frozen=True)
class RandomOrder(VotingMethod):
    """One order of the queries, drawn from `seed` and the same for every image.

    So runs, batch splits and devices agree. `catp-eval` draws anew for every question, which says more about
    random pruning than one order does.
    """

    name: ClassVar[str] = "random"

    seed: int = 0

    def scores(self, evidence: Evidence) -> torch.Tensor:
        queries = evidence.query_embeds.shape[1]
        order = np.random.default_rng(self.seed).permutation(queries)
        return torch.from_numpy(order.astype(np.float32) + 1)[None]
