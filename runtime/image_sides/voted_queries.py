"""From images to the query tokens that are kept: preprocessing, vision encoder, Q-Former with its vote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from catp.runtime.bundle.folder import Bundle
from catp.runtime.bundle.manifest import INSTRUCTION_TOKENIZER_FILE, Manifest
from catp.runtime.errors import UsageError
from catp.runtime.image_sides.query_tokens import Encoded, Pruned, Votes
from catp.runtime.inputs.images import ImageSource, load_image, preprocess
from catp.runtime.inputs.text import TextCodec
from catp.runtime.language_models.inputs import padded
from catp.runtime.providers.base import DeviceTensor, Provider, Value
from catp.runtime.pruning import check_mass, check_ratio, num_kept, num_kept_by_mass, top_indices


class ImageSide:
    """The graphs before the language model, loaded, one stage after the other."""

    def __init__(self, bundle: Bundle, provider: Provider) -> None:
        self.bundle = bundle
        self.provider = provider
        manifest = bundle.manifest
        self._instructions = (
            TextCodec(bundle.path / INSTRUCTION_TOKENIZER_FILE, manifest.text) if manifest.reads_instruction else None
        )
        self._vision = provider.engine(bundle, "vision_encoder")
        self._qformer = provider.engine(bundle, "qformer_voting")

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    def num_kept(self, ratio: float | None = None) -> int:
        """Query tokens left at a ratio (None: the bundle's default)."""
        pruning = self.manifest.pruning
        ratio = pruning.ratio if ratio is None else check_ratio(ratio)
        if pruning.method == "none" and ratio > 0:
            raise UsageError(f"ratio {ratio}: this bundle was exported with --method none and keeps every token")
        return num_kept(ratio, pruning.num_query_tokens)

    def preprocess(self, images: Sequence[ImageSource]) -> np.ndarray:
        """pixel_values float32 [B, 3, H, W]."""
        return preprocess([load_image(image) for image in images], self.manifest.image)

    def encode(self, pixel_values: np.ndarray, prompts: Sequence[str] = ()) -> Encoded:
        """What the vision encoder makes of pixel_values float32 [B, 3, H, W], with prompts if the Q-Former reads them.

        Raises:
            UsageError: this bundle's Q-Former reads prompts, and there is not one for each image.
        """
        if self._instructions is not None and len(prompts) != len(pixel_values):
            raise UsageError(
                f"{len(pixel_values)} images and {len(prompts)} prompts: the Q-Former of this bundle reads the prompt "
                "too; give one for each image"
            )
        return {**self._vision.bind({"pixel_values": pixel_values}).run(), **self.instruct(prompts)}

    def instruct(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """instruction_ids and instruction_mask int64 [B, T], padded on the right; nothing where no Q-Former reads them.

        Raises:
            UsageError: a prompt is too long for the Q-Former.
        """
        if self._instructions is None:
            return {}
        ids, lengths = padded([self._instructions.encode(prompt) for prompt in prompts], 0)
        limit = self.manifest.text.max_instruction
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
        outputs = self._run_qformer(encoded, self.manifest.pruning.num_query_tokens)
        left_out = ("kept_indices", "kept_embeds")
        return Votes(
            outputs["kept_embeds"].numpy(),
            {name: tensor.numpy() for name, tensor in outputs.items() if name not in left_out},
        )

    def _run_qformer(self, encoded: Encoded, kept: int) -> Mapping[str, DeviceTensor]:
        inputs: dict[str, Value] = {"num_kept": np.array([kept], np.int64)}
        for tensor in self.manifest.graphs["qformer_voting"].inputs:
            if tensor.name not in inputs:
                inputs[tensor.name] = encoded[tensor.name]
        return self._qformer.bind(inputs).run()

    def _check_mass(self, mass: float | None) -> None:
        if check_mass(mass) is not None and self.manifest.pruning.method == "none":
            raise UsageError(f"keep mass {mass}: this bundle was exported with --method none and keeps every token")

    def _groups(self, votes: Votes, mass: float) -> list[tuple[list[int], Pruned]]:
        """Rows that keep equally many tokens, together: the language model's prefix has one length for a batch."""
        counts = num_kept_by_mass(votes.scores, mass)
        groups = []
        for kept in np.unique(counts):
            rows = np.flatnonzero(counts == kept)
            groups.append((rows.tolist(), votes.keep(top_indices(votes.scores[rows], int(kept)), rows)))
        return groups
