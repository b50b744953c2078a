"""Stages of a bundle before its language model, for callers that share their work between settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from catp.runtime.bundle.folder import Bundle
from catp.runtime.bundle.manifest import Manifest
from catp.runtime.image_sides import open_image_side
from catp.runtime.image_sides.pruned_encoder import DEFAULT, EncoderWish
from catp.runtime.image_sides.query_tokens import Encoded, Pruned, Remembered, Seen, Votes
from catp.runtime.inputs.image_files import ImageSource
from catp.runtime.inputs.text import TextCodec
from catp.runtime.providers.base import Provider
from catp.runtime.pruning import joined_frames, top_by_mass, top_indices
from catp.runtime.questions import Wishes


class Stages:
    """A bundle's image side and texts: pictures encoded, voted on and pruned, prompts as token ids."""

    def __init__(self, bundle: Bundle, provider: Provider) -> None:
        self.bundle = bundle
        self.provider = provider
        self.image_side = open_image_side(bundle, provider)
        text = bundle.manifest.text
        self._text = TextCodec(bundle.path / "tokenizer.json", text, text.image_token_id)

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    def num_kept(self, ratio: float | None = None) -> int:
        """Query tokens left at a ratio (None: the bundle's default)."""
        return self.image_side.num_kept(ratio)

    def preprocess(self, images: Sequence[ImageSource]) -> np.ndarray:
        """pixel_values float32 [B, 3, H, W]."""
        return self.image_side.preprocess(images)

    def instruct(self, prompts: Sequence[str]) -> Mapping[str, np.ndarray]:
        """Inputs of the image side that are made of prompts, by name; none where votes don't depend on them."""
        return self.image_side.instruct(prompts)

    def encode(self, pixel_values: np.ndarray, prompts: Sequence[str] = (), encoder: EncoderWish = DEFAULT) -> Encoded:
        """Images encoded, with a prompt for each where votes depend on prompts."""
        return self.image_side.encode(pixel_values, prompts, encoder)

    def prune(self, encoded: Encoded, kept: int) -> Pruned:
        """The `kept` tokens of each image that it votes for most, in the engine's memory."""
        return self.image_side.prune(encoded, kept)

    def votes(self, encoded: Encoded) -> Votes:
        """All tokens of each image with their scores, in host memory."""
        return self.image_side.votes(encoded)

    def remember(self, encoded: Encoded) -> Seen:
        """Enough of one image, or of one video's frames, to answer about it at every ratio; see `keep`."""
        return self.image_side.remember(encoded)

    def keep(self, seen: Seen, wishes: Wishes) -> Pruned:
        """The tokens of a remembered picture that the language model reads: those of `generate`."""
        kept, mass = wishes.pruning(self.manifest, self.image_side)
        if self.manifest.vote is None:
            assert isinstance(seen, Remembered)
            return self.prune(seen.encoded, kept)
        queries = self.manifest.pruning.num_query_tokens
        if mass is not None:
            votes = self.votes_of(seen)
            frames = len(votes.embeds)
            (indices,) = joined_frames(top_by_mass(votes.scores, mass), frames, queries)
            pruned = votes.joined(frames).keep(indices[None])
            pruned.check(1, len(indices), frames * queries)
            return pruned
        if isinstance(seen, Remembered):
            pruned = self.prune(seen.encoded, kept)
        else:
            pruned = seen.keep(top_indices(seen.scores, kept))
        frames = len(pruned.indices)
        pruned.check(frames, kept, queries)
        return pruned.joined(frames, queries)

    def votes_of(self, seen: Seen) -> Votes:
        """The votes of a remembered picture."""
        return self.votes(seen.encoded) if isinstance(seen, Remembered) else seen

    def tokenize(self, prompt: str) -> list[int]:
        """Token ids of a prompt, special tokens included."""
        return self._text.encode(prompt)

    def detokenize(self, token_ids: Sequence[int], stop_strings: Sequence[str] = ()) -> str:
        """Text of generated tokens, up to the first of the stop strings."""
        return self._text.decode(token_ids, stop_strings)
