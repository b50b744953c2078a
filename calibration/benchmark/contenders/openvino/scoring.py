"""A checkpoint that scores texts, run by OpenVINO on a CPU: each part of it converted from PyTorch.

Parts, by the stage that each one is; B texts of S tokens each, none of them padded:

    vision    pixel_values float32 [P,3,H,W] -> image tokens [P,I,Dv]
    qformer   image tokens -> vectors of all query tokens [P,N,Dt], of BLIP-2
    image     image tokens -> one vector of each picture [P,1,Dt], of the others but NLVR2
    text      text ids int64 [B,S] -> vectors [B,Dt]; of NLVR2 with the image tokens of both pictures -> logits [B,2]
    match     text ids, image tokens [B,I,Dv] -> logits [B,2], where a head reads both
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

from catp.calibration.benchmark.contenders.openvino.compiling import infer
from catp.calibration.benchmark.contenders.openvino.image_sides import VisionTower, outputs_of
from catp.calibration.benchmark.contenders.openvino.int8 import calibration_texts
from catp.calibration.benchmark.contenders.openvino.subject import OpenVinoContender
from catp.calibration.benchmark.contenders.pytorch.scoring import SCORERS, Clock
from catp.calibration.benchmark.contenders.subject import Case, Timed, TimedInput
from catp.export.checkpoints.loading import Checkpoint
from catp.runtime.bundle.chains import LanguageKind
from catp.runtime.matching.base import probability_of_yes
from catp.runtime.matching.zero_shot import probabilities


class Part(torch.nn.Module):
    """Steps of a model, which it holds, so that they can be traced."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model


class ClipImage(Part):
    """The vector of CLIP's class token, which alone goes through the vision encoder's last layer norm."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        seen = self.model.vision_model.post_layernorm(tokens[:, 0])
        return normalize(self.model.visual_projection(seen), dim=-1)[:, None]


class ClipText(Part):
    """The vector of CLIP's text."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        read = self.model.text_model(input_ids=ids, attention_mask=torch.ones_like(ids)).pooler_output
        return normalize(self.model.text_projection(read), dim=-1)


class Statement(Part):
    """The text encoder and head of NLVR2."""

    def forward(self, ids: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return self.model.judge(ids, torch.ones_like(ids), first, second)


class BlipImage(Part):
    """The vector of BLIP's class token."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return normalize(self.model.vision_proj(tokens[:, 0]), dim=-1)[:, None]


class BlipText(Part):
    """The vector of BLIP's text, read without a picture."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        read = self.model.text_encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        return normalize(self.model.text_proj(read[:, 0]), dim=-1)


class BlipMatch(Part):
    """BLIP's text encoder beside a picture, and the head."""

    def forward(self, ids: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        read = self.model.text_encoder(
            input_ids=ids, attention_mask=torch.ones_like(ids), encoder_hidden_states=tokens
        ).last_hidden_state
        return self.model.itm_head(read[:, 0])


class Queries(Part):
    """The Q-Former without a text: vectors of its query tokens."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        queries = self.model.query_tokens.expand(tokens.shape[0], -1, -1)
        seen = self.model.qformer(query_embeds=queries, encoder_hidden_states=tokens).last_hidden_state
        return normalize(self.model.vision_projection(seen), dim=-1)


class QFormerText(Part):
    """The Q-Former without a picture: the vector of a text."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        read = self.model.qformer(query_embeds=self.model.embeddings(input_ids=ids), query_length=0).last_hidden_state
        return normalize(self.model.text_projection(read[:, 0]), dim=-1)


class QFormerMatch(Part):
    """The Q-Former with both, and the head."""

    def forward(self, ids: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        queries = self.model.query_tokens.expand(tokens.shape[0], -1, -1)
        count = self.model.query_tokens.shape[1]
        read = self.model.qformer(
            query_embeds=self.model.embeddings(input_ids=ids, query_embeds=queries),
            query_length=count,
            encoder_hidden_states=tokens,
        ).last_hidden_state
        return self.model.itm_head(read[:, :count]).mean(1)


PARTS: dict[LanguageKind, dict[str, type[torch.nn.Module]]] = {
    "contrastive": {"vision": VisionTower, "image": ClipImage, "text": ClipText},
    "two-images": {"vision": VisionTower, "text": Statement},
    "matching": {"vision": VisionTower, "image": BlipImage, "text": BlipText, "match": BlipMatch},
    "none": {"vision": VisionTower, "qformer": Queries, "text": QFormerText, "match": QFormerMatch},
}
"""By kind of model, in the order in which they run."""


class OpenVinoScores(OpenVinoContender):
    """Scores of every text, all query tokens or image tokens kept."""

    def convert(self, loaded: Checkpoint, pictures: Sequence[np.ndarray]) -> None:
        model, self._pictures = loaded.model, SCORERS[self._kind].pictures
        self._scale = loaded.family.logit_scale(model)
        ids = calibration_texts(loaded.tokenizer, len(pictures))
        seen = [(pixel_values,) for pixel_values in pictures]
        tokens = outputs_of(VisionTower(model), seen)
        pairs = list(zip(ids, tokens, [*tokens[1:], tokens[0]]))
        read, images = [(text,) for text in ids], [(one,) for one in tokens]
        samples: dict[str, Sequence[tuple[np.ndarray, ...]]] = {
            "vision": seen,
            "qformer": images,
            "image": images,
            "text": pairs if self._kind == "two-images" else read,
            "match": list(zip(ids, tokens)),
        }
        self._parts = {name: self.prepare(part(model), samples[name]) for name, part in PARTS[self._kind].items()}

    def run(self, timed_input: TimedInput, case: Case) -> Timed:
        """Score the first `case.batch` requests, from pictures in memory to scores in host memory."""
        clock, count = Clock(), len(timed_input.texts)
        texts = np.array(list(timed_input.texts) * (1 if self._kind == "contrastive" else case.batch))
        started = time.perf_counter()
        with clock.stage("preprocess"):
            pixel_values = self.preprocess(timed_input.images[: self._pictures * case.batch])
        tokens = self._timed(clock, "vision", pixel_values)
        if self._kind == "two-images":
            scores = probability_of_yes(self._timed(clock, "text", texts, *np.split(tokens, 2)))[:, None]
        else:
            vectors = self._timed(clock, "qformer" if "qformer" in self._parts else "image", tokens)
            read = self._timed(clock, "text", texts)
            if self._scale is not None:
                scores = probabilities(vectors[:, 0], read, self._scale)
            else:
                logits = self._timed(clock, "match", texts, np.repeat(tokens, count, 0) if count > 1 else tokens)
                cosines = np.einsum("bvd,bnd->bvn", vectors, read.reshape(case.batch, count, -1)).max(1)
                scores = np.concatenate([probability_of_yes(logits).reshape(case.batch, -1), cosines], 1)
        found = scores.tolist()
        total = 1e3 * (time.perf_counter() - started)
        stages = clock.milliseconds
        return Timed({**stages, "host": total - sum(stages.values()), "total": total}, scores=found)

    def _timed(self, clock: Clock, part: str, *inputs: np.ndarray) -> np.ndarray:
        with clock.stage(part):
            return infer(self._parts[part], list(inputs))
