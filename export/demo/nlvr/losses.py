"""The auxiliary loss of the small BLIP for two pictures: words tell what they find. Not part of the model."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from catp.export.demo.nlvr.batches import Batch
from catp.export.demo.scenes import COLORS, PLACES, SHAPES

MOST = 5
"""Things in a scene, at most."""


class WordTeller(torch.nn.Module):
    """Linear heads over tokens before the last layer, for both pictures at once.

    True or false says nothing until a word is compared with what is seen; seeing is learnt here first.
    """

    def __init__(self, tokenizer: Any, width: int) -> None:
        super().__init__()
        known = tokenizer.get_vocab()
        self.colors = torch.tensor([known[color] for color in COLORS])
        self.shapes = torch.tensor([known[shape] for shape in SHAPES])
        self.number = known["shapes"]
        sizes = {"shape": len(SHAPES) + 1, "place": len(PLACES) + 1, "colors": len(COLORS), "count": MOST + 1}
        self.heads = torch.nn.ModuleDict({name: torch.nn.Linear(width, 2 * size) for name, size in sizes.items()})

    def loss(self, words: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Mean of four cross-entropies.

        Args:
            words: [P * Q, S, W].
        """
        ids, said = batch.ids, len(batch.ids) // len(batch.first)

        def told(name: str, chosen: torch.Tensor) -> torch.Tensor:
            """[n, 2, classes] of the words that `chosen`, bool [P * Q, S], is true for."""
            return self.heads[name](words[chosen]).unflatten(-1, (2, -1))

        is_color, is_shape = torch.isin(ids, self.colors), torch.isin(ids, self.shapes)
        pair = torch.arange(len(ids))[:, None].expand_as(ids) // said
        color = (ids[is_color][:, None] == self.colors).long().argmax(1)
        shown = batch.shown[pair[is_color], :, color]  # [n, 2, 2]
        losses = [
            F.cross_entropy(told(name, is_color).flatten(0, 1), shown[..., place].flatten())
            for place, name in enumerate(("shape", "place"))
        ]
        shape = (ids[is_shape][:, None] == self.shapes).long().argmax(1)
        there = (batch.shown[pair[is_shape], :, :, 0] == shape[:, None, None]).float()  # [n, 2, C]
        losses.append(F.binary_cross_entropy_with_logits(told("colors", is_shape), there))
        counted = ids == self.number
        if counted.any():
            found = told("count", counted)
            losses.append(F.cross_entropy(found.flatten(0, 1), batch.count[pair[counted]].flatten()))
        return torch.stack(losses).mean()
