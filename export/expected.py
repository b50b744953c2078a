"""What PyTorch says about sample images and prompts.

It is computed before the graphs are traced, so that the checkpoint can be freed before ONNX Runtime loads the same
weights again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from catp.export.reference import Greedy, Reference, Votes, rank_points
from catp.runtime.manifest import Positions
from catp.runtime.pruning import num_kept

MAX_NEW_TOKENS = 12


@dataclass(frozen=True)
class Sample:
    """An image with a prompt, of the kind the model is asked."""

    image: Image.Image
    prompt: str


@dataclass(frozen=True)
class Expected:
    """Everything PyTorch has to say about the samples."""

    samples: Sequence[Sample]
    prompt_ids: list[list[int]]
    pixel_values: np.ndarray  # float32 [B, 3, H, W]
    image_embeds: np.ndarray  # float32 [B, I, Dv]
    query_embeds: np.ndarray  # float32 [B, N, Dl], all of them, projected
    votes: Votes
    kept_indices: np.ndarray  # int64 [B, k]: the top of `votes`
    kept_positions: np.ndarray  # int64 [B, k]
    position_start: int  # of the prompts' first token
    pruned: list[Greedy]  # per row, after the kept tokens
    unpruned: list[list[int]]  # Hugging Face generate()

    @property
    def num_kept(self) -> int:
        return self.kept_indices.shape[1]


def compute_expected(
    reference: Reference,
    samples: Sequence[Sample],
    method: str,
    ratio: float,
    positions: Positions,
    image_embeds_dtype: torch.dtype,
) -> Expected:
    """Run the checkpoint on the samples, with all query tokens and with those left at `ratio`.

    Args:
        image_embeds_dtype: of the Q-Former graph's input. PyTorch votes on image embeddings rounded to it: what the
            vision encoder's precision does to the votes is not the voting head's fault.
    """
    prompt_ids = [reference.tokenize(sample.prompt) for sample in samples]
    pixel_values = reference.pixel_values([sample.image for sample in samples])
    image_embeds = reference.image_embeds(pixel_values).to(image_embeds_dtype).float()
    query_embeds, maps = reference.query_embeds(image_embeds)
    batch, queries = query_embeds.shape[:2]
    votes = rank_points(maps) if method == "catp" else Votes(*np.zeros((2, batch, queries), np.int64))
    kept = num_kept(ratio, queries)
    kept_indices = np.sort(np.argsort(-votes.scores, axis=1, kind="stable")[:, :kept], axis=1)
    original = positions == "original"
    kept_positions = kept_indices if original else np.tile(np.arange(kept), (batch, 1))
    start = queries if original else kept
    pruned = [
        reference.continue_greedily(
            query_embeds[row, kept_indices[row]], kept_positions[row].tolist(), start, ids, MAX_NEW_TOKENS
        )
        for row, ids in enumerate(prompt_ids)
    ]
    unpruned = [
        reference.generate(pixel_values[row : row + 1], ids, MAX_NEW_TOKENS) for row, ids in enumerate(prompt_ids)
    ]
    return Expected(
        samples=samples,
        prompt_ids=prompt_ids,
        pixel_values=pixel_values.numpy(),
        image_embeds=image_embeds.numpy(),
        query_embeds=query_embeds.numpy(),
        votes=votes,
        kept_indices=kept_indices,
        kept_positions=kept_positions,
        position_start=start,
        pruned=pruned,
        unpruned=unpruned,
    )
