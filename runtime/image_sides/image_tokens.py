"""All tokens that leave the vision encoder, as what answers reads them: nothing votes for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from catp.runtime.bundle.folder import Bundle
from catp.runtime.errors import GraphError, UsageError
from catp.runtime.image_sides.pruned_encoder import DEFAULT, EncoderWish
from catp.runtime.image_sides.query_tokens import Encoded, Pruned, Remembered, Seen, Votes
from catp.runtime.inputs.image_files import ImageSource
from catp.runtime.inputs.images import load_and_preprocess
from catp.runtime.providers.base import Provider, to_host
from catp.runtime.pruning import check_mass, check_ratio


class ImageTokens:
    """vision_encoder, loaded."""

    def __init__(self, bundle: Bundle, provider: Provider) -> None:
        self._manifest = bundle.manifest
        self._vision = provider.engine(bundle, "vision_encoder")

    def num_kept(self, ratio: float | None = None) -> int:
        """All tokens of an image.

        Raises:
            UsageError: a ratio that is not 0.
        """
        if ratio is not None and check_ratio(ratio) > 0:
            raise UsageError(f"ratio {ratio}: {self._why}; leave the ratio out")
        return self._manifest.tokens

    def check_mass(self, mass: float | None) -> None:
        """Raises UsageError where a share of votes is asked for: there are none."""
        if check_mass(mass) is not None:
            raise UsageError(f"keep mass {mass}: {self._why}; leave it out")

    @property
    def _why(self) -> str:
        return f"{self._manifest.model.family} has no query tokens to leave out"

    def preprocess(self, images: Sequence[ImageSource]) -> np.ndarray:
        """pixel_values float32 [B, 3, H, W]."""
        return load_and_preprocess(images, self._manifest.image)

    def instruct(self, prompts: Sequence[str]) -> Mapping[str, np.ndarray]:
        """Nothing: the vision encoder reads no prompt."""
        return {}

    def encode(self, pixel_values: np.ndarray, prompts: Sequence[str] = (), encoder: EncoderWish = DEFAULT) -> Encoded:
        """image_embeds [B, I, Dv] of pixel_values float32 [B, 3, H, W], and kept_positions if the encoder prunes."""
        control = encoder.inputs(self._manifest.encoder_pruning, self._manifest.model.family)
        return {**self._vision.bind({"pixel_values": pixel_values, **control}).run(), **control}

    def prune(self, encoded: Encoded, kept: int) -> Pruned:
        """Every token of the encoder, in the engine's memory: CLS is 0, patch i is 1 + i, a merged token -1."""
        embeds = encoded["image_embeds"]
        rows, tokens = embeds.shape[:2]
        if "kept_positions" not in encoded:
            return Pruned(np.tile(np.arange(tokens), (rows, 1)), embeds)
        patches = to_host(encoded["kept_positions"])
        most = self._manifest.tokens - 1
        if patches.shape != (rows, tokens - 1) or patches.min(initial=0) < -1 or patches.max(initial=0) >= most:
            raise GraphError("vision_encoder", f"its kept_positions are not patches of {rows} images")
        indices = np.concatenate([np.zeros((rows, 1), np.int64), np.where(patches < 0, -1, patches + 1)], 1)
        control = encoded.get("encoder_temperature")
        return Pruned(indices, embeds, temperature=None if control is None else float(to_host(control)[0]))

    def votes(self, encoded: Encoded) -> Votes:
        """Every token, with as many votes as any other, in host memory."""
        embeds = to_host(encoded["image_embeds"])
        return Votes(embeds, {"token_scores": np.zeros(embeds.shape[:2], np.float32)})

    def remember(self, encoded: Encoded) -> Seen:
        """Everything that the encoder outputs: nothing else is computed of an image."""
        return Remembered({name: np.array(to_host(value)) for name, value in encoded.items()})

    def by_mass(self, encoded: Encoded, mass: float, frames: int = 1) -> list[tuple[list[int], Pruned]]:
        """Raises UsageError: there are no votes to keep a share of."""
        raise UsageError(f"keep mass {mass}: {self._why}")
