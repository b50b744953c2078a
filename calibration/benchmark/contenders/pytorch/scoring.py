"""A checkpoint that scores texts, run by PyTorch: the steps of its own `forward`, pictures and texts encoded once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import normalize

from catp.calibration.benchmark.contenders.pytorch.loading import TorchContender, compile_parts
from catp.calibration.benchmark.contenders.subject import Case, Timed, TimedInput
from catp.runtime.bundle.chains import LanguageKind


class Clock:
    """Milliseconds of stages; on a CPU a stage ends when its work is done."""

    def __init__(self) -> None:
        self.milliseconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.milliseconds[name] = self.milliseconds.get(name, 0.0) + 1e3 * (time.perf_counter() - started)


@dataclass(frozen=True)
class Scorer:
    """How a kind of model scores.

    Args:
        score: model, pixel_values [P,3,H,W], text ids int64 [T,S] and clock to scores [B, N] as `ScoringSubject` orders
            them; texts are each picture's, repeated for every picture, but for a contrastive model's classes.
        pictures: of a request.
        parts: of the model, that torch.compile compiles.
    """

    score: Callable[[Any, torch.Tensor, torch.Tensor, Clock], torch.Tensor]
    parts: tuple[str, ...]
    pictures: int = 1
    shared_texts: bool = False


class TextScores(TorchContender):
    """Scores of every text, all query tokens or image tokens kept."""

    def prepare(self, compiled: bool) -> None:
        self._scorer = SCORERS[self._kind]
        if compiled:
            compile_parts(self._model, self._scorer.parts)

    def run(self, timed_input: TimedInput, case: Case) -> Timed:
        """Score the first `case.batch` requests, from pictures in memory to scores in host memory."""
        clock, scorer = Clock(), self._scorer
        texts = list(timed_input.texts) * (1 if scorer.shared_texts else case.batch)
        started = time.perf_counter()
        with clock.stage("preprocess"):
            pixel_values = self.preprocess(timed_input.images[: scorer.pictures * case.batch])
        with torch.inference_mode():
            scores = scorer.score(self._model, pixel_values, torch.tensor(texts), clock).tolist()
        total = 1e3 * (time.perf_counter() - started)
        stages = clock.milliseconds
        return Timed({**stages, "host": total - sum(stages.values()), "total": total}, scores=scores)


def _contrastive(model: Any, pixel_values: torch.Tensor, ids: torch.Tensor, clock: Clock) -> torch.Tensor:
    """CLIP: probabilities of classes [B, C]."""
    with clock.stage("vision"):
        seen = model.vision_model(pixel_values=pixel_values).pooler_output
    with clock.stage("image"):
        vectors = normalize(model.visual_projection(seen), dim=-1)
    with clock.stage("text"):
        read = model.text_model(input_ids=ids, attention_mask=torch.ones_like(ids)).pooler_output
        classes = normalize(model.text_projection(read), dim=-1)
    return (model.logit_scale.exp() * (vectors @ classes.T)).float().softmax(-1)


def _two_images(model: Any, pixel_values: torch.Tensor, ids: torch.Tensor, clock: Clock) -> torch.Tensor:
    """NLVR2, by this project's module: probability of true [B, 1]."""
    with clock.stage("vision"):
        first, second = model.vision_model(pixel_values).last_hidden_state.chunk(2)
    with clock.stage("text"):
        logits = model.judge(ids, torch.ones_like(ids), first, second)
    return logits.float().softmax(-1)[:, 1:]


def _matching(model: Any, pixel_values: torch.Tensor, ids: torch.Tensor, clock: Clock) -> torch.Tensor:
    """BLIP: probabilities of the head, then cosines [B, 2T]."""
    count, mask = len(ids) // len(pixel_values), torch.ones_like(ids)
    with clock.stage("vision"):
        tokens = model.vision_model(pixel_values=pixel_values).last_hidden_state
    with clock.stage("image"):
        vectors = normalize(model.vision_proj(tokens[:, 0]), dim=-1)
    with clock.stage("text"):
        read = model.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        texts = normalize(model.text_proj(read[:, 0]), dim=-1)
    with clock.stage("match"):
        images = tokens.repeat_interleave(count, 0) if count > 1 else tokens
        read = model.text_encoder(
            input_ids=ids,
            attention_mask=mask,
            encoder_hidden_states=images,
            encoder_attention_mask=torch.ones(images.shape[:2], dtype=torch.long),
        ).last_hidden_state
        logits = model.itm_head(read[:, 0])
    return _both(logits, vectors[:, None], texts)


def _queries(model: Any, pixel_values: torch.Tensor, ids: torch.Tensor, clock: Clock) -> torch.Tensor:
    """BLIP-2, with all query tokens: probabilities of the head, then cosines [B, 2T]."""
    count, mask, queries = len(ids) // len(pixel_values), torch.ones_like(ids), model.query_tokens
    with clock.stage("vision"):
        tokens = model.vision_model(pixel_values=pixel_values).last_hidden_state.to(queries.dtype)
    with clock.stage("qformer"):
        seen = model.qformer(
            query_embeds=queries.expand(len(tokens), -1, -1),
            encoder_hidden_states=tokens,
            encoder_attention_mask=torch.ones(tokens.shape[:2], dtype=torch.long),
        ).last_hidden_state
        vectors = normalize(model.vision_projection(seen.to(model.vision_projection.weight.dtype)), dim=-1)
    with clock.stage("text"):
        words = model.embeddings(input_ids=ids).to(queries.dtype)
        read = model.qformer(query_embeds=words, query_length=0, attention_mask=mask).last_hidden_state[:, 0]
        texts = normalize(model.text_projection(read.to(model.text_projection.weight.dtype)), dim=-1)
    with clock.stage("match"):
        images = tokens.repeat_interleave(count, 0) if count > 1 else tokens
        asked = queries.expand(len(ids), -1, -1)
        length = asked.shape[1]
        read = model.qformer(
            query_embeds=model.embeddings(input_ids=ids, query_embeds=asked).to(queries.dtype),
            query_length=length,
            attention_mask=torch.cat([torch.ones(asked.shape[:2], dtype=torch.long), mask], 1),
            encoder_hidden_states=images,
            encoder_attention_mask=torch.ones(images.shape[:2], dtype=torch.long),
        ).last_hidden_state[:, :length]
        logits = model.itm_head(read.to(model.itm_head.weight.dtype)).mean(1)
    return _both(logits, vectors, texts)


def _both(logits: torch.Tensor, vectors: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    """Args: logits [B*T, 2]; vectors [B, v, D] of pictures, and texts [B*T, D], all of length 1."""
    batch = len(vectors)
    cosines = torch.einsum("bvd,bnd->bvn", vectors, texts.reshape(batch, -1, texts.shape[-1])).amax(1)
    return torch.cat([logits.float().softmax(-1)[:, 1].reshape(batch, -1), cosines.float()], 1)


SCORERS: dict[LanguageKind, Scorer] = {
    "contrastive": Scorer(_contrastive, ("vision_model", "text_model"), shared_texts=True),
    "two-images": Scorer(_two_images, ("vision_model", "judge"), pictures=2),
    "matching": Scorer(_matching, ("vision_model", "text_encoder")),
    "none": Scorer(_queries, ("vision_model", "qformer")),
}
"""By kind of model."""
