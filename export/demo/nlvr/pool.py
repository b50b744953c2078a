"""A pool of pictures, in pairs that come with statements."""

from __future__ import annotations

import numpy as np
from PIL import Image

from catp.export.demo.nlvr.statements import Judged, Pair, Pairs, judged, pool_of_scenes
from catp.export.demo.scenes import Split, draw


class Pool:
    """Pictures of one split, drawn once; pairs and statements are new in every batch."""

    def __init__(self, count: int, seed: int, split: Split) -> None:
        self.scenes = pool_of_scenes(count, seed, split)
        self._rng = np.random.default_rng([seed, count])
        self._seeds = np.random.default_rng([seed, 1, split == "train"]).integers(1 << 31, size=count)
        self._pairs = Pairs(self.scenes)

    def picture(self, place: int, turn: int = 0) -> Image.Image:
        """A scene drawn; at each turn with another background, other sizes and offsets."""
        return draw(self.scenes[place], np.random.default_rng([self._seeds[place], turn]))

    def draw(self, statements: int) -> tuple[Pair, list[Judged]]:
        """The next pair, with statements about it."""
        pair = self._pairs.draw(self._rng)
        return pair, judged(self._rng, self.scenes[pair.first], self.scenes[pair.second], statements)
