"""The checkpoint run by plain Hugging Face PyTorch: what exported graphs are compared with.

Nothing here shares code with the graphs or with the runtime: eager attention, attention maps taken by hooks,
ranks by sorting, Hugging Face's own cache and processors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import DynamicCache, EncoderDecoderCache

from catp.export.checkpoints.loading import Checkpoint
from catp.export.checkpoints.placeholder import placeholder_without_embedding
from catp.export.families.query_tokens import QueryTokens, cross_attention
from catp.export.image_encoders.attention_maps import attention_of
from catp.export.image_encoders.base import ImageEmbeds
from catp.export.verification.continuations import CONTINUE, Greedy, cache_of, generated
from catp.export.voting import RankPoints
from catp.export.voting.base import Evidence, VotingMethod, weighted_maps
from catp.runtime.bundle.manifest import Positions

NEAR_TIE = 1e-4
"""Two probabilities closer than this, relative to the larger, may change places between implementations."""


ROUNDING = 1e-5
"""Noise, relative to each value, that stands for what rounding does to attention and embeddings on the way."""

GREEDILY: dict[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": 0,
    "return_dict_in_generate": True,
    "output_logits": True,
}
"""Arguments of `generate()`: greedily, whatever else the checkpoint's configuration asks for."""


@dataclass(frozen=True)
class Instructions:
    """Prompts in tokens of the Q-Former's own tokenizer."""

    ids: torch.Tensor  # int64 [B, T], padded on the right
    mask: torch.Tensor  # int64 [B, T], 0 where a pad is


@dataclass(frozen=True)
class ReferenceVotes:
    """Scores and how far float rounding could move them."""

    scores: np.ndarray  # [B, N]
    slack: np.ndarray  # [B, N]


@dataclass(frozen=True)
class Pair:
    """A text and an image, by a model that gives each one vector."""

    text: np.ndarray  # float32 [Dt], of length 1
    image: np.ndarray  # likewise
    similarity: float  # as Hugging Face's model says
    logits: np.ndarray | None = None  # float32 [2], of a head that reads both
    scaled: float | None = None  # the similarity, scaled for a softmax


def count_votes(method: VotingMethod, evidence: Evidence) -> ReferenceVotes:
    """A method's scores, as they should be.

    Rank points, the default, are counted independently, by sorting. Other methods are run as they are, on the
    attention and embeddings of Hugging Face's modules (numpy versions of them are in the tests), and again with noise:
    a greedy choice may turn on a near tie, and then all that follows moves.
    """
    if isinstance(method, RankPoints) and method.points == "rank":
        layers = weighted_maps(evidence, method.layers, method.layer_weights)
        image_weights = evidence.image_weights.numpy() if method.reads_image_weights else None  # type: ignore[union-attr]
        return rank_points([maps.numpy() for maps, _ in layers], [weight for _, weight in layers], image_weights)
    batch = len(evidence.image_embeds)
    scores = method.scores(evidence).expand(batch, -1).numpy()
    generator = torch.Generator().manual_seed(0)
    slack = np.full(scores.shape, 1e-4 * np.abs(scores).max(initial=1e-30))
    for _ in range(4):
        noisy = method.scores(_with_noise(evidence, generator)).expand(batch, -1).numpy()
        slack = np.maximum(slack, 2 * np.abs(noisy - scores))
    return ReferenceVotes(scores, slack)


def _with_noise(evidence: Evidence, generator: torch.Generator) -> Evidence:
    def shaken(values: torch.Tensor) -> torch.Tensor:
        return values * (1 + ROUNDING * torch.randn(values.shape, generator=generator))

    return Evidence(
        cross_attention=[None if layer is None else shaken(layer) for layer in evidence.cross_attention],
        self_attention=[shaken(layer) for layer in evidence.self_attention],
        query_embeds=shaken(evidence.query_embeds),
        image_embeds=shaken(evidence.image_embeds),
        image_weights=None if evidence.image_weights is None else shaken(evidence.image_weights),
    )


def rank_points(
    maps: Sequence[np.ndarray], weights: Sequence[float] | None = None, image_weights: np.ndarray | None = None
) -> ReferenceVotes:
    """Rank points by sorting (see export/voting/catp.py); slack: the comparisons of a query that are near ties.

    Args:
        maps: each layer's probabilities [B, H, N, I].
        weights: of the layers; None: 1 each.
        image_weights: [B, I]; None: 1 each.
    """
    scores: np.ndarray | float = 0.0
    slack: np.ndarray | float = 0.0
    voices = 1.0 if image_weights is None else image_weights[:, None, None, :].astype(np.float64)
    for layer, weight in zip(maps, weights or [1.0] * len(maps)):
        queries = layer.shape[2]
        best_first = np.argsort(-layer, axis=2, kind="stable")
        rank = np.argsort(best_first, axis=2, kind="stable")
        scores = scores + weight * (voices * (queries - rank)).sum((1, 3))
        ordered = np.sort(layer, axis=2)
        close = np.zeros(layer.shape, np.int64)
        for shift in range(1, queries):
            near = ordered[:, :, shift:] <= ordered[:, :, :-shift] * (1 + NEAR_TIE)
            if not near.any():  # sorted: then none further apart is near either
                break
            close[:, :, shift:] += near
            close[:, :, :-shift] += near
        ascending_rank = queries - 1 - rank
        slack = slack + weight * (voices * np.take_along_axis(close, ascending_rank, axis=2)).sum((1, 3))
    if image_weights is not None:  # no whole numbers any more: sums round too
        slack = slack + 1e-4 * np.abs(scores)
    return ReferenceVotes(np.asarray(scores), np.asarray(slack))


class Reference:
    """A checkpoint's stages, one by one."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._model = checkpoint.model

    def tokenize(self, prompt: str) -> list[int]:
        """Token ids of a prompt, which is text, also where it looks like a special token."""
        return self._checkpoint.tokenizer(prompt, split_special_tokens=True).input_ids

    def instructions(self, prompts: Sequence[str]) -> Instructions | None:
        """Prompts as the Q-Former reads them; None where it doesn't."""
        tokenizer = self._checkpoint.instruction_tokenizer
        if tokenizer is None:
            return None
        rows = [torch.tensor(ids) for ids in tokenizer(list(prompts), split_special_tokens=True).input_ids]
        pad = 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id  # masked: any will do
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        return Instructions(ids, mask)

    def pixel_values(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """float32 [B, 3, H, W]; a processor that neither rescales nor normalises leaves bytes."""
        return self._checkpoint.image_processor(list(images), return_tensors="pt").pixel_values.float()

    def image_embeds(self, pixel_values: torch.Tensor) -> ImageEmbeds:
        """Image embeddings, float32, by the family's image encoder."""
        return self._checkpoint.family.image_encoder.embed(self._model, pixel_values)

    @torch.no_grad()
    def query_embeds(
        self,
        image_embeds: torch.Tensor,
        image_weights: torch.Tensor | None = None,
        instructions: Instructions | None = None,
    ) -> tuple[torch.Tensor, Evidence]:
        """Projected query tokens float32 [B, N, Dl], and everything that a vote may read.

        Args:
            instructions: of a family that reads them.
        """
        model, family = self._model, self._checkpoint.family
        assert isinstance(family, QueryTokens)
        cross = cross_attention(model.qformer)
        own = [layer.attention.attention for layer in model.qformer.encoder.layer]
        queries = model.query_tokens.expand(len(image_embeds), -1, -1)
        count = queries.shape[1]
        read: dict[str, torch.Tensor] = {}
        if instructions is not None:
            mask = torch.cat([torch.ones(queries.shape[:2], dtype=torch.long), instructions.mask], 1)
            read = {"input_ids": instructions.ids, "attention_mask": mask}
        with attention_of([*cross, *own]) as maps:
            embeds = model.qformer(query_embeds=queries, encoder_hidden_states=image_embeds, **read).last_hidden_state
        embeds = embeds[:, :count]
        evidence = Evidence(
            cross_attention=[layer[0] for layer in maps[: len(cross)]],
            self_attention=[layer[0][..., :count, :count] for layer in maps[len(cross) :]],
            query_embeds=embeds,
            image_embeds=image_embeds,
            image_weights=image_weights,
        )
        return family.projection(model)(embeds), evidence

    @property
    def generates_text(self) -> bool:
        return self._checkpoint.family.generates_text

    @property
    def judges(self) -> bool:
        """Whether its samples are statements about two images."""
        return self._checkpoint.family.language.kind == "two-images"

    @property
    def votes(self) -> bool:
        return self._checkpoint.family.votes

    @torch.no_grad()
    def answer(self, pixel_values: torch.Tensor, question_ids: Sequence[int], max_new_tokens: int) -> Greedy:
        """Hugging Face `generate()`, greedy, of a model that reads image tokens: one image [1, 3, H, W]."""
        with self._checkpoint.family.standing_in(self._model):
            output = self._model.generate(
                input_ids=torch.tensor([list(question_ids)]),
                attention_mask=torch.ones(1, len(question_ids), dtype=torch.long),
                pixel_values=pixel_values,
                max_new_tokens=max_new_tokens,
                cache=EncoderDecoderCache(DynamicCache(), DynamicCache()),
                **GREEDILY,
            )
        layers = output.cache.cross_attention_cache.layers
        tensors = [layer.keys for layer in layers] + [layer.values for layer in layers]
        greedy = generated(output)
        return Greedy(greedy.token_ids, greedy.logits, [tensor[0].numpy() for tensor in tensors])

    @torch.no_grad()
    def pair(self, pixel_values: torch.Tensor, text_ids: Sequence[int]) -> Pair:
        """A text and one image [1, 3, H, W], by Hugging Face's model: BLIP for retrieval, or CLIP."""
        model, normalize = self._model, torch.nn.functional.normalize
        ids = torch.tensor([list(text_ids)])
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixel_values}
        with self._checkpoint.family.standing_in(model):
            if self._checkpoint.family.language.kind == "contrastive":
                output = model(**given)
                scaled = output.logits_per_image[0, 0].item()
                text, image = output.text_embeds[0], output.image_embeds[0]
                return Pair(text.numpy(), image.numpy(), scaled / model.logit_scale.exp().item(), None, scaled)
            output, head = model(**given, use_itm_head=False), model(**given)
        text = normalize(model.text_proj(output.question_embeds[0, 0]), dim=-1)
        image = normalize(model.vision_proj(output.last_hidden_state[0, 0]), dim=-1)
        return Pair(text.numpy(), image.numpy(), output.itm_score[0, 0].item(), head.itm_score[0].numpy())

    @torch.no_grad()
    def judge(self, pixel_values: torch.Tensor, text_ids: Sequence[int]) -> np.ndarray:
        """Logits float32 [2] of false and true, by the model: a statement about two images [2, 3, H, W]."""
        ids = torch.tensor([list(text_ids)])
        with self._checkpoint.family.standing_in(self._model):
            return self._model(pixel_values, ids, torch.ones_like(ids))[0].numpy()

    @torch.no_grad()
    def contrast(self, pixel_values: torch.Tensor, text_ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """A text's embedding float32 [Dt] and those of all an image's query tokens [N, Dt], each of length 1."""
        with self._checkpoint.family.standing_in(self._model):
            output = self._model(pixel_values=pixel_values, **self._beside_queries(text_ids))
        return output.text_embeds[0].numpy(), output.image_embeds[0].numpy()

    @torch.no_grad()
    def match(self, pixel_values: torch.Tensor, text_ids: Sequence[int], kept_indices: Sequence[int]) -> np.ndarray:
        """Matching logits float32 [2] of one image [1, 3, H, W], by the model with the kept queries alone."""
        model = self._model
        queries, count = model.query_tokens, model.config.num_query_tokens
        try:
            model.query_tokens = torch.nn.Parameter(queries[:, list(kept_indices)])
            model.config.num_query_tokens = len(kept_indices)
            with self._checkpoint.family.standing_in(model):
                output = model(
                    pixel_values=pixel_values, **self._beside_queries(text_ids), use_image_text_matching_head=True
                )
            return output.logits_per_image[0].numpy()
        finally:
            model.query_tokens, model.config.num_query_tokens = queries, count

    def _beside_queries(self, text_ids: Sequence[int]) -> dict[str, torch.Tensor]:
        """As Hugging Face's processor gives a text to a retrieval model: after a placeholder for every query token."""
        config = self._model.config
        ids = torch.tensor([[config.image_token_index] * config.num_query_tokens + list(text_ids)])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    @torch.no_grad()
    def generate(
        self,
        pixel_values: torch.Tensor,
        prompt_ids: Sequence[int],
        max_new_tokens: int,
        instructions: Instructions | None = None,
    ) -> Greedy:
        """Hugging Face `generate()`, greedy, of one image [1, 3, H, W] or one video [F, 3, H, W], all query tokens."""
        name = self._checkpoint.family.placeholder
        assert name is not None  # every family with query tokens has one
        pruning = self._checkpoint.family.standing_in(self._model)
        with pruning, placeholder_without_embedding(self._model, name) as placeholder:
            placeholders = [placeholder] * self._model.config.num_query_tokens * len(pixel_values)
            ids = torch.tensor([placeholders + list(prompt_ids)])
            output = self._model.generate(
                pixel_values=pixel_values if self._checkpoint.family.frames is None else pixel_values[None],
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_new_tokens,
                **GREEDILY,
                **({} if instructions is None else {"qformer_input_ids": instructions.ids}),
                **cache_of(self._checkpoint.family.language.kind),
            )
        return generated(output)

    @torch.no_grad()
    def continue_greedily(
        self,
        query_embeds: torch.Tensor,
        kept_indices: Sequence[int],
        positions: Positions,
        prompt_ids: Sequence[int],
        max_new_tokens: int,
    ) -> Greedy:
        """One row by the Hugging Face language model: kept ones of the query tokens [N, Dl], then the prompt."""
        lm = self._model.language_model
        words = lm.get_input_embeddings()(torch.tensor(list(prompt_ids)))
        kept = torch.tensor(list(kept_indices))
        continue_ = CONTINUE[self._checkpoint.family.language.kind]
        return continue_(lm, query_embeds, kept, positions, words, eos_token_ids(self._checkpoint), max_new_tokens)


def eos_token_ids(checkpoint: Checkpoint) -> tuple[int, ...]:
    """The ids that end generation; none where the checkpoint names none."""
    eos = checkpoint.generation_config.eos_token_id
    return () if eos is None else (eos,) if isinstance(eos, int) else tuple(eos)
