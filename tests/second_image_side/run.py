"""The second image side, for tests: it runs both graphs of `exported.py`, and turns back what lies between them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from catp.runtime.bundle.folder import Bundle
from catp.runtime.image_sides.pruned_encoder import DEFAULT, EncoderWish
from catp.runtime.image_sides.voted_queries import VotedQueries
from catp.runtime.providers.base import Provider, Value, to_host


class TwoSteps(VotedQueries):
    """patch_embedding, patch_layers and qformer_voting, loaded."""

    def load_encoder(self, bundle: Bundle, provider: Provider) -> None:
        self._embedding = provider.engine(bundle, "patch_embedding")
        self._layers = provider.engine(bundle, "patch_layers")

    def see(self, pixel_values: np.ndarray, encoder: EncoderWish = DEFAULT) -> Mapping[str, Value]:
        patches = to_host(self._embedding.bind({"pixel_values": pixel_values}).run()["patches"])
        return self._layers.bind({"patches": -patches}).run()
