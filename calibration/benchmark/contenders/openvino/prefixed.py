"""A decoder-only language model that reads query embeddings before its prompt, run by OpenVINO.

input_ids int64 [B,S], prefix_embeds float32 [B,K,Dl], beam_idx int32 [B]
  -> logits [B,V] of the last token; keys and values stay in the infer request
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import Cache

from catp.calibration.benchmark.contenders.openvino.compiling import compile_model, infer
from catp.calibration.benchmark.contenders.openvino.conversion import convert_step, growing, grown
from catp.calibration.benchmark.contenders.openvino.int8 import (
    ATTENTION,
    PROMPT_TOKENS,
    SEED,
    draw,
    quantize_model,
    step_samples,
)


class PrefixedStep(torch.nn.Module):
    """A prefill or decode step: K prefix tokens and S text tokens after all those in the cache."""

    def __init__(self, language_model: Any) -> None:
        super().__init__()
        self.embedding = language_model.get_input_embeddings()
        self.decoder = language_model.base_model
        self.head = language_model.get_output_embeddings()

    def forward(
        self, input_ids: torch.Tensor, prefix_embeds: torch.Tensor, past: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, ...]:
        """`past` is a key and a value of each layer in turn, [B,H,T,d]; so is what follows the logits."""
        embeds = torch.cat([prefix_embeds, self.embedding(input_ids)], 1)
        seen = past[0].shape[2]
        slots = torch.arange(seen + embeds.shape[1])
        positions = slots[seen:]
        layers = growing(past)
        hidden = self.decoder(
            inputs_embeds=embeds,
            attention_mask=(slots[None] <= positions[:, None])[None, None],  # bool [1,1,K+S,T+K+S]
            position_ids=positions[None].expand(embeds.shape[0], -1),
            cache=Cache(layers=[*layers]),
            use_cache=True,
        ).last_hidden_state
        # As in ours, the head sees one token of each row.
        return self.head(hidden[:, -1]), *grown(layers)


class PrefixedLanguageModel:
    """One compiled model with its cache.

    Args:
        model: a Blip2ForConditionalGeneration or an InstructBLIP, in evaluation mode.
        query_embeds: float32 [1,N,Dl] of two pictures at least.
        threads: of OpenVINO.
        int8: weights and activations; else all is float32.

    Raises:
        UsageError: OpenVINO can't express a part of it.
    """

    def __init__(self, model: Any, query_embeds: Sequence[np.ndarray], threads: int, int8: bool) -> None:
        language_model = model.language_model
        prefix = torch.from_numpy(np.concatenate(query_embeds[:2]))
        input_ids = torch.ones(2, 3, dtype=torch.long)
        cache = language_model(input_ids=input_ids, use_cache=True).cache
        converted = convert_step(
            PrefixedStep(language_model),
            {"input_ids": (input_ids, [-1, -1]), "prefix_embeds": (prefix, [-1, -1, prefix.shape[2]])},
            tuple(states for layer in cache.layers for states in (layer.keys, layer.values)),
        )
        if int8:
            rng, vocabulary = np.random.default_rng(SEED), language_model.config.vocab_size
            samples: list[dict[str, Any]] = []
            for embeds in query_embeds:
                prefixes = {"prefix_embeds": embeds}, {"prefix_embeds": embeds[:, :0]}
                samples += step_samples(rng, vocabulary, draw(rng, vocabulary, PROMPT_TOKENS), *prefixes)
            converted = quantize_model(converted, samples, ATTENTION)
        self._request = compile_model(converted, threads, int8)
        self._no_prefix = query_embeds[0][:, :0]

    def begin(self, prompt_ids: np.ndarray, query_embeds: np.ndarray) -> np.ndarray:
        """The first tokens [B] after prompts int64 [B,S] about pictures [B,N,Dl]; an earlier answer is forgotten."""
        self._request.reset_state()
        return self._step(prompt_ids, query_embeds)

    def go_on(self, tokens: np.ndarray) -> np.ndarray:
        """The tokens [B] that follow those."""
        return self._step(tokens[:, None], self._no_prefix.repeat(len(tokens), axis=0))

    def _step(self, input_ids: np.ndarray, prefix_embeds: np.ndarray) -> np.ndarray:
        rows = np.arange(len(input_ids), dtype=np.int32)
        given = {"input_ids": input_ids, "prefix_embeds": prefix_embeds, "beam_idx": rows}
        return infer(self._request, given).argmax(-1)
