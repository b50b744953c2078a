"""Query tokens of a Q-Former, some of them kept: preprocessing, vision encoder, Q-Former with its vote."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from catp.runtime.bundle.folder import Bundle
from catp.runtime.bundle.manifest import INSTRUCTION_TOKENIZER_FILE
from catp.runtime.errors import UsageError
from catp.runtime.image_sides.pruned_encoder import DEFAULT, EncoderWish
from catp.runtime.image_sides.query_tokens import Encoded, Pruned, Remembered, Seen, Votes
from catp.runtime.inputs.image_files import ImageSource
from catp.runtime.inputs.images import load_and_preprocess
from catp.runtime.inputs.padding import padded
from catp.runtime.inputs.text import TextCodec
from catp.runtime.providers.base import DeviceTensor, Provider, Value, to_host
from catp.runtime.pruning import check_mass, check_ratio, joined_frames, num_kept, top_by_mass


class VotedQueries:
    """vision_encoder and qformer_voting, loaded."""

    def __init__(self, bundle: Bundle, provider: Provider) -> None:
        manifest = bundle.manifest
        self._manifest = manifest
        self._instructions = (
            TextCodec(bundle.path / INSTRUCTION_TOKENIZER_FILE, manifest.text) if manifest.reads_instruction else None
        )
        self.load_encoder(bundle, provider)
        self._qformer = provider.engine(bundle, "qformer_voting")

    def load_encoder(self, bundle: Bundle, provider: Provider) -> None:
        """Load the graphs that `see` runs; an encoder of another shape overrides both."""
        self._vision = provider.engine(bundle, "vision_encoder")

    def num_kept(self, ratio: float | None = None) -> int:
        """Query tokens left at a ratio (None: the bundle's default)."""
        pruning = self._manifest.pruning
        ratio = pruning.ratio if ratio is None else check_ratio(ratio)
        if pruning.method == "none" and ratio > 0:
            raise UsageError(f"ratio {ratio}: this bundle was exported with --method none and keeps every token")
        return num_kept(ratio, pruning.num_query_tokens)

    def preprocess(self, images: Sequence[ImageSource]) -> np.ndarray:
        """pixel_values float32 [B, 3, H, W]."""
        return load_and_preprocess(images, self._manifest.image)

    def encode(self, pixel_values: np.ndarray, prompts: Sequence[str] = (), encoder: EncoderWish = DEFAULT) -> Encoded:
        """Image embeddings of pixel_values float32 [B, 3, H, W], and the prompts' tokens if the Q-Former reads them.

        Raises:
            UsageError: this bundle's Q-Former reads prompts, and there is not one for each image.
        """
        if self._instructions is not None and len(prompts) != len(pixel_values):
            raise UsageError(
                f"{len(pixel_values)} images and {len(prompts)} prompts: the Q-Former of this bundle reads the prompt "
                "too; give one for each image"
            )
        return {**self.see(pixel_values, encoder), **self.instruct(prompts)}

    def see(self, pixel_values: np.ndarray, encoder: EncoderWish = DEFAULT) -> Mapping[str, Value]:
        """Outputs of the vision encoder: image_embeds [B, I, Dv], and image_weights [B, I] where votes read them."""
        control = encoder.inputs(self._manifest.encoder_pruning, self._manifest.model.family)
        return self._vision.bind({"pixel_values": pixel_values, **control}).run()

    def instruct(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """instruction_ids and instruction_mask int64 [B, T], padded on the right; nothing where no Q-Former reads them.

        Raises:
            UsageError: a prompt is too long for the Q-Former.
        """
        if self._instructions is None:
            return {}
        ids, lengths = padded([self._instructions.encode(prompt) for prompt in prompts], 0)
        limit = self._manifest.text.max_instruction
        if limit is not None and ids.shape[1] > limit:
            raise UsageError(f"prompt: {ids.shape[1]} tokens for the Q-Former, which takes {limit}; give a shorter one")
        return {
            "instruction_ids": ids,
            "instruction_mask": (np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int64),
        }

    def prune(self, encoded: Encoded, kept: int) -> Pruned:
        """The `kept` query tokens that the image votes for most, in the engine's memory."""
        outputs = self._run_qformer(encoded, kept)
        return Pruned(outputs["kept_indices"], outputs["kept_embeds"])

    def votes(self, encoded: Encoded) -> Votes:
        """All query tokens and what is to be said about them, in host memory: for choices that the graph can't make."""
        outputs = self._run_qformer(encoded, self._manifest.pruning.num_query_tokens)
        left_out = ("kept_indices", "kept_embeds")
        return Votes(
            outputs["kept_embeds"].numpy(),
            {name: tensor.numpy() for name, tensor in outputs.items() if name not in left_out},
        )

    def remember(self, encoded: Encoded) -> Seen:
        """The votes; where activations are scaled by what a call brings, numbers depend on how many tokens are kept,
        so there it is what the Q-Former reads."""
        quantised = self._manifest.graphs["qformer_voting"].quantization
        if quantised is None or quantised.activations != "dynamic":
            return self.votes(encoded)
        return Remembered({name: np.array(to_host(value)) for name, value in encoded.items()})

    def _run_qformer(self, encoded: Encoded, kept: int) -> Mapping[str, DeviceTensor]:
        inputs: dict[str, Value] = {"num_kept": np.array([kept], np.int64)}
        for tensor in self._manifest.graphs["qformer_voting"].inputs:
            if tensor.name not in inputs:
                inputs[tensor.name] = encoded[tensor.name]
        return self._qformer.bind(inputs).run()

    def check_mass(self, mass: float | None) -> None:
        """Raises UsageError where a share of the votes is out of range, or this bundle keeps every token."""
        if check_mass(mass) is not None and self._manifest.pruning.method == "none":
            raise UsageError(f"keep mass {mass}: this bundle was exported with --method none and keeps every token")

    def by_mass(self, encoded: Encoded, mass: float, frames: int = 1) -> list[tuple[list[int], Pruned]]:
        """Rows that keep equally many tokens, together: the language model's prefix has one length for a batch."""
        votes = self.votes(encoded)
        kept = joined_frames(top_by_mass(votes.scores, mass), frames, votes.scores.shape[1])
        whole, alike = votes.joined(frames), defaultdict(list)
        for row, indices in enumerate(kept):
            alike[len(indices)].append(row)
        return [
            (rows, whole.keep(np.stack([kept[row] for row in rows]), np.array(rows)))
            for _, rows in sorted(alike.items())
        ]
