"""The checkpoint run by plain Hugging Face PyTorch: what exported graphs are compared with.

Nothing here shares code with the graphs or with the runtime: eager attention, attention maps taken by hooks,
ranks by sorting, Hugging Face's own cache and processors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from transformers import DynamicCache

from catp.export.checkpoint import Checkpoint

NEAR_TIE = 1e-4
"""Two probabilities closer than this, relative to the larger, may change places between implementations."""


@dataclass(frozen=True)
class Votes:
    """Rank points and how far float rounding could move them."""

    scores: np.ndarray  # int64 [B, N]
    slack: np.ndarray  # int64 [B, N]: comparisons of this query that are near ties


def rank_points(maps: Sequence[np.ndarray]) -> Votes:
    """Rank points by sorting, from each layer's probabilities [B, H, N, I] (see export/methods/catp.py)."""
    scores: np.ndarray | int = 0
    slack: np.ndarray | int = 0
    for layer in maps:
        queries = layer.shape[2]
        best_first = np.argsort(-layer, axis=2, kind="stable")
        rank = np.argsort(best_first, axis=2, kind="stable")
        scores = scores + (queries - rank).sum((1, 3))
        ordered = np.sort(layer, axis=2)
        close = np.zeros(layer.shape, np.int64)
        for shift in range(1, queries):
            near = ordered[:, :, shift:] <= ordered[:, :, :-shift] * (1 + NEAR_TIE)
            if not near.any():  # sorted: then none further apart is near either
                break
            close[:, :, shift:] += near
            close[:, :, :-shift] += near
        ascending_rank = queries - 1 - rank
        slack = slack + np.take_along_axis(close, ascending_rank, axis=2).sum((1, 3))
    return Votes(np.asarray(scores), np.asarray(slack))


@dataclass(frozen=True)
class Greedy:
    """A greedy continuation."""

    token_ids: list[int]
    logits: np.ndarray  # float32 [steps, V]


class Reference:
    """A checkpoint's stages, one by one."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._model = checkpoint.model

    def tokenize(self, prompt: str) -> list[int]:
        return self._checkpoint.tokenizer(prompt).input_ids

    def pixel_values(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """float32 [B, 3, H, W]."""
        return self._checkpoint.image_processor(list(images), return_tensors="pt").pixel_values

    def image_embeds(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """float32 [B, I, Dv]."""
        return self._checkpoint.family.image_embeds(self._model, pixel_values)

    def query_embeds(self, image_embeds: torch.Tensor) -> tuple[torch.Tensor, list[np.ndarray]]:
        """Projected query tokens float32 [B, N, Dl], and the cross-attention maps [B, H, N, I] of each layer."""
        embeds, maps = self._checkpoint.family.query_embeds(self._model, image_embeds)
        return embeds, [m.numpy() for m in maps]

    @torch.no_grad()
    def generate(self, pixel_values: torch.Tensor, prompt_ids: Sequence[int], max_new_tokens: int) -> list[int]:
        """Hugging Face `generate()`, greedy, of one image [1, 3, H, W] with all query tokens."""
        config = self._model.config
        ids = torch.tensor([[config.image_token_index] * config.num_query_tokens + list(prompt_ids)])
        output = self._model.generate(
            pixel_values=pixel_values,
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
        )[0].tolist()
        # Depending on its version, generate() repeats the prompt.
        return output[ids.shape[1] :] if output[: ids.shape[1]] == ids[0].tolist() else output

    @torch.no_grad()
    def continue_greedily(
        self,
        prefix_embeds: torch.Tensor,
        prefix_positions: Sequence[int],
        position_start: int,
        prompt_ids: Sequence[int],
        max_new_tokens: int,
    ) -> Greedy:
        """One row by the Hugging Face language model: kept tokens [k, Dl] at given positions, then the prompt."""
        lm = self._model.language_model
        eos = eos_token_ids(self._checkpoint)
        words = lm.get_input_embeddings()(torch.tensor(list(prompt_ids)))
        embeds = torch.cat([prefix_embeds, words])[None]
        text = range(position_start, position_start + len(prompt_ids))
        positions = torch.tensor([[*prefix_positions, *text]])
        cache = DynamicCache(config=lm.config)
        output = lm(inputs_embeds=embeds, position_ids=positions, past_key_values=cache, use_cache=True)
        tokens: list[int] = []
        logits: list[torch.Tensor] = []
        position = position_start + len(prompt_ids)
        while True:
            logits.append(output.logits[0, -1])
            tokens.append(int(logits[-1].argmax()))
            if tokens[-1] in eos or len(tokens) == max_new_tokens:
                return Greedy(tokens, torch.stack(logits).float().numpy())
            output = lm(
                input_ids=torch.tensor([tokens[-1:]]),
                position_ids=torch.tensor([[position]]),
                past_key_values=cache,
                use_cache=True,
            )
            position += 1


def eos_token_ids(checkpoint: Checkpoint) -> tuple[int, ...]:
    """The ids that end generation; none where the checkpoint names none."""
    eos = checkpoint.generation_config.eos_token_id
    return () if eos is None else (eos,) if isinstance(eos, int) else tuple(eos)
