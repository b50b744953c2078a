"""A checkpoint that scores texts, run by OpenVINO on a CPU: each part of it converted from PyTorch.

Parts, by the stage that each one is; B texts of S tokens each, none of them padded:

    vision    pixel_values float32 [P,3,H,W] -> image tokens [P,I,Dv]
    qformer   image tokens -> vectors of all query tokens [P,N,Dt], of BLIP-2
    image     image tokens -> one vector of each picture [P,1,Dt], of the others but NLVR2
    text      text ids int64 [B,S] -> vectors [B,Dt]; of NLVR2 with the image tokens of both pictures -> logits [B,2]
    match     text ids, image tokens [B,I,Dv] -> logits [B,2], where a head reads both
"""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import normalize

from catp.calibration.benchmark.contenders.openvino.conversion import convert, set_shapes
from catp.calibration.benchmark.contenders.openvino.int8 import (
    PICTURES,
    PROMPT_TOKENS,
    SEED,
    calibration_pictures,
    quantize_model,
)
from catp.calibration.benchmark.contenders.openvino.subject import compile_model, infer
from catp.calibration.benchmark.contenders.pytorch.scoring import SCORERS, Clock
from catp.calibration.benchmark.contenders.subject import Case, Timed, TimedInput
from catp.export.checkpoints.loading import load_checkpoint
from catp.runtime.bundle.chains import LanguageKind
from catp.runtime.errors import UsageError
from catp.runtime.matching.base import probability_of_yes
from catp.runtime.matching.zero_shot import probabilities


class Part(torch.nn.Module):
    """Steps of a model, which it holds, so that they can be traced."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model


class Tokens(Part):
    """The vision encoder of every kind; CLIP's ends in a layer norm of the class token alone, which `ClipImage` has."""

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model.vision_model(pixel_values=pixel_values).last_hidden_state


class ClipImage(Part):
    """The vector of CLIP's class token."""

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


PARTS: dict[LanguageKind, dict[str, type[Part]]] = {
    "contrastive": {"vision": Tokens, "image": ClipImage, "text": ClipText},
    "two-images": {"vision": Tokens, "text": Statement},
    "matching": {"vision": Tokens, "image": BlipImage, "text": BlipText, "match": BlipMatch},
    "none": {"vision": Tokens, "qformer": Queries, "text": QFormerText, "match": QFormerMatch},
}
"""By kind of model, in the order in which they run."""


class OpenVinoScores:
    """Compiled parts, all query tokens or image tokens kept; preprocessing by transformers.

    Nothing computes in bfloat16. PyTorch's weights are gone when it is loaded.

    Args:
        name: what a report calls it.
        checkpoint: a folder or a Hub id, with safetensors.
        threads: of OpenVINO.
        kind: of model.
        int8: weights and activations; else all is float32.

    Raises:
        UsageError: the checkpoint can't be loaded or is of another kind, or OpenVINO can't convert it.
        CatpError: its weights are broken.
    """

    def __init__(self, name: str, checkpoint: str, threads: int, kind: LanguageKind, int8: bool = False) -> None:
        self.name, self._kind, self._pictures = name, kind, SCORERS[kind].pictures
        loaded = load_checkpoint(checkpoint)
        if loaded.family.language.kind != kind:
            raise UsageError(
                f"--checkpoint {checkpoint}: it is {loaded.family.name}, and the bundle is not; give the folder or Hub "
                "id that the bundle was exported from"
            )
        self._processor = loaded.image_processor
        self._scale = loaded.family.logit_scale(loaded.model)
        self._parts = self._convert(loaded.model, loaded.tokenizer, threads, int8)
        del loaded
        gc.collect()  # modules and traces refer to each other, and hold the weights

    def run(self, timed_input: TimedInput, case: Case) -> Timed:
        """Score the first `case.batch` requests, from pictures in memory to scores in host memory."""
        clock, count = Clock(), len(timed_input.texts)
        texts = np.array(list(timed_input.texts) * (1 if self._kind == "contrastive" else case.batch))
        started = time.perf_counter()
        with clock.stage("preprocess"):
            pixel_values = self._preprocess(timed_input.images[: self._pictures * case.batch])
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

    def _preprocess(self, images: Sequence[Image.Image]) -> np.ndarray:
        return self._processor(list(images), return_tensors="np").pixel_values

    @torch.no_grad()
    def _convert(self, model: Any, tokenizer: Any, threads: int, int8: bool) -> dict[str, Any]:
        """An infer request for each part; in INT8 it is calibrated with what PyTorch computes before it."""
        if model._supports_sdpa:  # BLIP's do not
            model.set_attn_implementation("sdpa")
        pictures = [self._preprocess([picture]) for picture in calibration_pictures(PICTURES if int8 else 2)]
        ids = _calibration_texts(tokenizer, len(pictures))
        tower = Tokens(model)
        tokens = [tower(torch.from_numpy(pixels)).numpy() for pixels in pictures]
        pairs = list(zip(ids, tokens, [*tokens[1:], tokens[0]]))
        samples: dict[str, list[Any]] = {
            "vision": pictures,
            "qformer": tokens,
            "image": tokens,
            "text": pairs if self._kind == "two-images" else ids,
            "match": list(zip(ids, tokens)),
        }
        found = {}
        for name, module in PARTS[self._kind].items():
            given = [sample if isinstance(sample, tuple) else (sample,) for sample in samples[name]]
            # Two rows, so that nothing is taken for one row only.
            example = tuple(torch.from_numpy(np.concatenate(rows)) for rows in zip(*given[:2]))
            converted = convert(module(model), example)
            set_shapes(converted, {number: _free(values.shape) for number, values in enumerate(example)})
            if int8:
                converted = quantize_model(converted, [list(values) for values in given])
            found[name] = compile_model(converted, threads, int8)
        return found


def _calibration_texts(tokenizer: Any, count: int) -> list[np.ndarray]:
    """Texts int64 [1, PROMPT_TOKENS] of ordinary tokens, framed by the marks of a text, as those that are timed."""
    rng, marks = np.random.default_rng(SEED), tokenizer("").input_ids
    # None of the first ids, which are special in most vocabularies, nor of the last ones, which are often added.
    words = [rng.integers(4, max(5, len(tokenizer) - 8), PROMPT_TOKENS - len(marks)) for _ in range(count)]
    return [np.array([[*marks[:1], *row, *marks[1:]]]) for row in words]


def _free(shape: Sequence[int]) -> list[int]:
    """The shape with as many rows as are asked, and of texts as many tokens; -1 is any number."""
    return [-1, -1] if len(shape) == 2 else [-1, *shape[1:]]
