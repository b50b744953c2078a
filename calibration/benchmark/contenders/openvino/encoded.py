"""Language models whose decoder reads by cross-attention what an encoder made, run by OpenVINO.

    reader    what stands before the decoder -> a key and a value of each of its layers in turn, [B,H,E,d]
    decoder   input_ids int64 [B,S], cross.{i} as the reader made them, beam_idx int32 [B]
                -> logits [B,V] of the last token; its own keys and values stay in the infer request

Keys and values of cross-attention are computed once for each answer. The decoder takes them from the reader's memory,
and nothing is copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.models.blip.modeling_blip_text import BlipTextSelfAttention

from catp.calibration.benchmark.contenders.openvino.compiling import compile_model, infer, prepare
from catp.calibration.benchmark.contenders.openvino.conversion import convert_step, growing, grown
from catp.calibration.benchmark.contenders.openvino.image_sides import outputs_of
from catp.calibration.benchmark.contenders.openvino.int8 import (
    ATTENTION,
    PROMPT_TOKENS,
    SEED,
    draw,
    quantize_model,
    step_samples,
)
from catp.runtime.bundle.chains import LanguageKind


class Reader(torch.nn.Module):
    """The part before a decoder, with the projections into the keys and values of its layers."""

    def __init__(self, readers: Sequence[tuple[torch.nn.Module, torch.nn.Module]], width: int) -> None:
        """Args: readers: of each layer, the projections that make keys and values; width: of a head."""
        super().__init__()
        self.projections = torch.nn.ModuleList(projection for pair in readers for projection in pair)
        self.width = width

    def project(self, encoded: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """[B,E,D] to what the decoder reads."""
        return tuple(
            projection(encoded).unflatten(-1, (-1, self.width)).transpose(1, 2) for projection in self.projections
        )


class T5Reader(Reader):
    """T5's encoder, after the query embeddings."""

    def __init__(self, model: Any) -> None:
        language_model = model.language_model
        attentions = [block.layer[1].EncDecAttention for block in language_model.decoder.block]
        super().__init__([(one.k, one.v) for one in attentions], language_model.config.d_kv)
        self.embedding, self.encoder = language_model.get_input_embeddings(), language_model.encoder

    def forward(self, input_ids: torch.Tensor, query_embeds: torch.Tensor) -> tuple[torch.Tensor, ...]:
        embeds = torch.cat([query_embeds, self.embedding(input_ids)], 1)
        return self.project(self.encoder(inputs_embeds=embeds).last_hidden_state)


class T5Step(torch.nn.Module):
    """A step of one token of T5's decoder and its head."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        language_model = model.language_model
        self.decoder, self.head = language_model.decoder, language_model.lm_head
        self.scale = language_model.model_dim**-0.5 if language_model.config.scale_decoder_outputs else 1.0

    def forward(
        self, input_ids: torch.Tensor, past: tuple[torch.Tensor, ...], cross: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, ...]:
        layers = growing(past)
        hidden = self.decoder(
            input_ids=input_ids,
            attention_mask=torch.ones(1, 1, 1, past[0].shape[2] + 1, dtype=torch.bool),
            # That there are encoder states is all that it still wants to know of them.
            encoder_hidden_states=self.decoder.embed_tokens(input_ids),
            cache=read_caches(layers, cross),
            use_cache=True,
        ).last_hidden_state
        return self.head(hidden[:, -1] * self.scale), *grown(layers)


class BlipReader(Reader):
    """BLIP's question encoder, which reads question and image tokens."""

    def __init__(self, model: Any) -> None:
        attentions = [layer.crossattention.self for layer in model.text_decoder.bert.encoder.layer]
        super().__init__([(one.key, one.value) for one in attentions], attentions[0].attention_head_size)
        self.encoder = getattr(model, "text_encoder", None)

    def forward(self, input_ids: torch.Tensor, image_embeds: torch.Tensor) -> tuple[torch.Tensor, ...]:
        assert self.encoder is not None
        hidden = self.encoder.embeddings(input_ids)
        for layer in self.encoder.encoder.layer:
            hidden = layer(hidden, image_embeds)
        return self.project(hidden)


class BlipImageReader(BlipReader):
    """No encoder: BLIP's decoder of captions reads the image tokens."""

    def forward(self, image_embeds: torch.Tensor) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        return self.project(image_embeds)


class BlipStep(torch.nn.Module):
    """A step of S tokens of BLIP's text decoder and its head."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.bert, self.head = model.text_decoder.bert, model.text_decoder.cls

    def forward(
        self, input_ids: torch.Tensor, past: tuple[torch.Tensor, ...], cross: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, ...]:
        seen, layers = past[0].shape[2], growing(past)
        slots = torch.arange(seen + input_ids.shape[1])
        positions, caches = slots[seen:], read_caches(layers, cross)
        visible = (slots[None] <= positions[:, None])[None, None]  # bool [1,1,S,T+S]
        hidden = self.bert.embeddings(input_ids, position_ids=positions[None])
        for layer in self.bert.encoder.layer:
            hidden = layer(hidden, hidden, attention_mask=visible, cache=caches)
        return self.head(hidden[:, -1]), *grown(layers)


def read_caches(layers: Sequence[Any], cross: Sequence[torch.Tensor]) -> EncoderDecoderCache:
    """A cache that grows, and one of the encoder that is only read."""
    caches = EncoderDecoderCache(Cache(layers=[*layers]), Cache(layers=[*growing(cross)]))
    caches.is_updated = dict.fromkeys(range(len(layers)), True)
    return caches


def attend_at_once(model: torch.nn.Module) -> None:
    """Let BLIP's text models call PyTorch's scaled dot product attention, which Hugging Face's spell out: only that
    operator runs in place over the cache.
    """
    for module in model.modules():
        if isinstance(module, BlipTextSelfAttention):
            module.forward = partial(_attend, module)


def _attend(
    module: BlipTextSelfAttention,
    hidden_states: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    encoder_hidden_states: torch.Tensor | None = None,
    cache: Any = None,
) -> tuple[torch.Tensor, None]:
    """[B,S,D] -> [B,S,H x d]; all of what an encoder made is seen."""

    def heads(projected: torch.Tensor) -> torch.Tensor:
        return projected.unflatten(-1, (-1, module.attention_head_size)).transpose(1, 2)

    encodes = encoder_hidden_states is not None
    if encodes and cache is not None:
        layer = cache.cross_attention_cache.layers[module.layer_idx]
        keys, values = layer.keys, layer.values
    else:
        source = encoder_hidden_states if encodes else hidden_states
        keys, values = heads(module.key(source)), heads(module.value(source))
        if cache is not None:
            keys, values = cache.self_attention_cache.layers[module.layer_idx].update(keys, values)
    mask = None if encodes else attention_mask
    attended = scaled_dot_product_attention(heads(module.query(hidden_states)), keys, values, attn_mask=mask)
    return attended.transpose(1, 2).flatten(2), None


PARTS: dict[LanguageKind, tuple[type[Reader], type[torch.nn.Module]]] = {
    "encoder-decoder": (T5Reader, T5Step),
    "question-answering": (BlipReader, BlipStep),
    "captioning": (BlipImageReader, BlipStep),
}
"""Reader and step by kind of model."""


class EncodedLanguageModel:
    """Two compiled models, the second with its cache.

    Args:
        model: a model of Hugging Face, in evaluation mode.
        kind: one of PARTS.
        features: float32 [1,K,D] of two pictures at least: query embeddings, or image tokens.
        threads: of OpenVINO.
        int8: weights and activations; else all is float32.

    Raises:
        UsageError: OpenVINO can't express a part of it.
    """

    def __init__(
        self, model: Any, kind: LanguageKind, features: Sequence[np.ndarray], threads: int, int8: bool
    ) -> None:
        reads_t5 = kind == "encoder-decoder"
        config = model.language_model.config if reads_t5 else model.config.text_config
        self._start = model.language_model.generation_config.decoder_start_token_id if reads_t5 else config.bos_token_id
        self._reads_prompt, self._kind = kind != "captioning", kind
        attend_at_once(model)
        reader, step = (part(model) for part in PARTS[kind])
        rng = np.random.default_rng(SEED)
        prompts = [draw(rng, config.vocab_size, PROMPT_TOKENS) for _ in features]
        given = [self._reads(prompt, seen) for prompt, seen in zip(prompts, features)]
        cross = outputs_of(reader, given)
        self._reader = prepare(reader, given, threads, int8)
        beginnings = [self._begins(prompt) for prompt in prompts]
        # Any number of tokens that T5's decoder takes but one would make its bias another one.
        tokens = 1 if reads_t5 else 3
        converted = convert_step(
            step,
            {"input_ids": (torch.ones(2, tokens, dtype=torch.long), [-1, 1 if reads_t5 else -1])},
            [torch.zeros(2, states.shape[1], 3, states.shape[3]) for states in cross[0]],
            [torch.from_numpy(np.concatenate(states)) for states in zip(*cross[:2])],
        )
        if int8:
            samples: list[dict[str, Any]] = []
            for beginning, states in zip(beginnings, cross):
                read = {f"cross.{i}": values for i, values in enumerate(states)}
                samples += step_samples(rng, config.vocab_size, beginning, read, read)
            converted = quantize_model(converted, samples, ATTENTION)
        self._decoder, self._read = compile_model(converted, threads, int8), len(cross[0])

    def begin(self, prompt_ids: np.ndarray, features: np.ndarray) -> np.ndarray:
        """The first tokens [B] after prompts int64 [B,S] about pictures [B,K,D]; an earlier answer is forgotten."""
        self._reader.infer(list(self._reads(prompt_ids, features)), share_inputs=True, share_outputs=True)
        for number in range(self._read):
            self._decoder.set_tensor(f"cross.{number}", self._reader.get_output_tensor(number))
        self._decoder.reset_state()
        return self._step(self._begins(prompt_ids))

    def go_on(self, tokens: np.ndarray) -> np.ndarray:
        """The tokens [B] that follow those."""
        return self._step(tokens[:, None])

    def _reads(self, prompt_ids: np.ndarray, features: np.ndarray) -> tuple[np.ndarray, ...]:
        """The reader's inputs."""
        return (prompt_ids, features) if self._reads_prompt else (features,)

    def _begins(self, prompt_ids: np.ndarray) -> np.ndarray:
        """The decoder's first tokens: captions go on after their prompt, without the marks that a tokenizer adds."""
        start = np.full((len(prompt_ids), 1), self._start)
        return start if self._reads_prompt else np.concatenate([start, prompt_ids[:, 1:-1]], 1)

    def _step(self, input_ids: np.ndarray) -> np.ndarray:
        rows = np.arange(len(input_ids), dtype=np.int32)
        return infer(self._decoder, {"input_ids": input_ids, "beam_idx": rows}).argmax(-1)
