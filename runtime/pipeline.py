"""The orchestrator: image and prompt through vision encoder, Q-Former with voting, and language model."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

import numpy as np

from catp.runtime.bundle import Bundle, open_bundle
from catp.runtime.engines import open_provider
from catp.runtime.engines.base import DeviceTensor, Provider, Value, to_host
from catp.runtime.errors import UsageError
from catp.runtime.generation import Generation, LanguageModel
from catp.runtime.images import ImageSource, load_image, preprocess
from catp.runtime.manifest import Manifest, Positions
from catp.runtime.pruning import check_ratio, num_kept
from catp.runtime.text import TextCodec


@dataclass(frozen=True)
class Timings:
    """Milliseconds of one batch; every row of the batch carries the same ones."""

    preprocess: float
    vision: float
    qformer: float
    prefill: float
    decode_per_token: float  # mean over decode steps; 0 where the first token ended every row
    total: float


@dataclass(frozen=True)
class Answer:
    """The result of one image and prompt."""

    answer: str
    token_ids: list[int]  # generated ones, the end token included where it was reached
    kept_indices: list[int]  # ascending, of 0 .. num_query_tokens - 1
    num_kept: int
    provider: str
    timings_ms: Timings

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Pruned:
    """What the language model gets to see of a batch of images, in the engine's memory."""

    kept_indices: Value  # int64 [B, k] ascending
    kept_embeds: Value  # [B, k, Dl]


class Pipeline:
    """A bundle's engines, loaded and chained."""

    def __init__(self, bundle: Bundle, provider: Provider) -> None:
        self.bundle = bundle
        self.provider = provider
        manifest = bundle.manifest
        tokenizer = bundle.path / "tokenizer.json"
        self._text = TextCodec(tokenizer, manifest.text)
        self._vision = provider.engine(bundle, "vision_encoder")
        self._qformer = provider.engine(bundle, "qformer_voting")
        self._language_model = LanguageModel(
            provider.engine(bundle, "language_model"), manifest.graphs["language_model"], manifest.text
        )

    @classmethod
    def load(
        cls,
        bundle: str | os.PathLike[str],
        provider: str = "cpu",
        verify: bool = True,
        threads: int | None = None,
        engines: str | None = None,
    ) -> Pipeline:
        """Open a bundle and load its graphs.

        Args:
            bundle: a folder written by catp-export.
            provider: what executes the graphs, one of `catp.runtime.engines.PROVIDERS`.
            verify: compare every file with the manifest's sha256 first.
            threads: CPU threads within an operator; None leaves it to the provider.
            engines: name of an engine set (`catp-inspect` lists them); None: the newest that fits.

        Raises:
            UsageError: no such bundle or provider.
            BundleError: the bundle is incomplete or was altered.
        """
        return cls(open_bundle(bundle, verify), open_provider(provider, threads, engines))

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    def generate(
        self,
        images: Sequence[ImageSource],
        prompts: Sequence[str],
        ratio: float | None = None,
        positions: Positions | None = None,
        max_new_tokens: int | None = None,
    ) -> list[Answer]:
        """Answer one prompt per image, all as one batch, greedily.

        Args:
            images: files or PIL images.
            prompts: as many; an empty one asks for a caption.
            ratio: fraction of query tokens removed, 0 <= ratio < 1; None: the bundle's default.
            positions: "original" or "compact"; None: the bundle's default.
            max_new_tokens: per prompt; None: the bundle's default.

        Raises:
            UsageError: an argument is out of range, or a prompt is too long for the model.
            ImageError: an image can't be read.
        """
        if len(images) != len(prompts) or not images:
            raise UsageError(
                f"{len(images)} images and {len(prompts)} prompts: give one prompt per image, at least one"
            )
        kept = self.num_kept(ratio)
        limit = self.manifest.text.max_new_tokens if max_new_tokens is None else max_new_tokens
        if limit < 1:
            raise UsageError(f"max_new_tokens {limit}: at least 1")
        token_ids = [self._text.encode(prompt) for prompt in prompts]
        clock = [time.perf_counter()]
        pixel_values = self.preprocess(images)
        clock.append(time.perf_counter())
        image_embeds = self.encode(pixel_values)
        self.provider.synchronize()  # so that each stage's time is its own
        clock.append(time.perf_counter())
        pruned = self.prune(image_embeds, kept)
        kept_indices = to_host(pruned.kept_indices)
        clock.append(time.perf_counter())
        generation = self.decode(pruned, token_ids, limit, positions)
        clock.append(time.perf_counter())
        decode = generation.decode_seconds
        preprocess_ms, vision_ms, qformer_ms, _ = np.diff(clock) * 1e3
        timings = Timings(
            preprocess=float(preprocess_ms),
            vision=float(vision_ms),
            qformer=float(qformer_ms),
            prefill=generation.prefill_seconds * 1e3,
            decode_per_token=float(np.mean(decode)) * 1e3 if decode else 0.0,
            total=(clock[-1] - clock[0]) * 1e3,
        )
        return [
            Answer(self._text.decode(ids), ids, indices.tolist(), kept, self.provider.name, timings)
            for ids, indices in zip(generation.token_ids, kept_indices)
        ]

    # --- the stages, for callers that share work between ratios ----------------------------------------

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

    def encode(self, pixel_values: np.ndarray) -> DeviceTensor:
        """image_embeds [B, I, Dv] of pixel_values float32 [B, 3, H, W]."""
        return self._vision.bind({"pixel_values": pixel_values}).run()["image_embeds"]

    def prune(self, image_embeds: DeviceTensor, kept: int) -> Pruned:
        """The `kept` query tokens that the image votes for most."""
        outputs = self._qformer.bind({"image_embeds": image_embeds, "num_kept": np.array([kept], np.int64)}).run()
        return Pruned(outputs["kept_indices"], outputs["kept_embeds"])

    def decode(
        self, pruned: Pruned, prompts: Sequence[Sequence[int]], max_new_tokens: int, positions: Positions | None = None
    ) -> Generation:
        """Generate after the kept tokens; prompts are token ids, one list per image."""
        pruning = self.manifest.pruning
        mode = positions or pruning.positions
        if mode not in get_args(Positions):
            raise UsageError(f"positions {mode!r}: unknown; accepted: {', '.join(get_args(Positions))}")
        batch, kept = pruned.kept_indices.shape
        if mode == "original":
            # As in training: kept tokens stay where they were, and the text begins after all N.
            where: Value = pruned.kept_indices
            start = pruning.num_query_tokens
        else:
            where, start = np.tile(np.arange(kept), (batch, 1)), kept
        return self._language_model.generate(pruned.kept_embeds, where, start, prompts, max_new_tokens)

    def tokenize(self, prompt: str) -> list[int]:
        """Token ids of a prompt, special tokens included."""
        return self._text.encode(prompt)

    def detokenize(self, token_ids: Sequence[int]) -> str:
        """Text of generated tokens."""
        return self._text.decode(token_ids)
