"""BLIP-2 with a decoder-only language model (OPT, and any other that takes position ids)."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import Blip2ForConditionalGeneration, DynamicCache

from catp.export.graphs import Graph, language_model, qformer_voting, vision_encoder
from catp.export.methods.base import Evidence, VotingMethod
from catp.runtime.errors import UsageError


class Blip2DecoderOnly:
    """vision_encoder, qformer_voting and language_model."""

    name = "BLIP-2 with a decoder-only language model"
    model_type = "blip-2"
    language_model = "decoder-only"

    def model_class(self) -> type[Blip2ForConditionalGeneration]:
        return Blip2ForConditionalGeneration

    def check(self, model: Any, name: str) -> None:
        lm = model.language_model
        if "position_ids" not in inspect.signature(lm.base_model.forward).parameters:
            raise UsageError(
                f"model {name}: its language model {lm.config.model_type!r} takes no position ids, "
                "so kept tokens can't keep their positions; accepted: language models with position_ids, such as OPT"
            )
        if getattr(lm.config, "sliding_window", None):
            raise UsageError(
                f"model {name}: its language model {lm.config.model_type!r} uses sliding-window attention, "
                "which the exported cache does not have; accepted: full attention"
            )

    def set_dtype(self, model: Any, dtype: torch.dtype) -> None:
        # The Q-Former stays float32, as transformers keeps it when it loads BLIP-2 in half precision. So do buffers: at
        # position 100, rotary frequencies rounded to bfloat16 would be off by as much as a tenth of a radian.
        for part in (model.vision_model, model.language_projection, model.language_model):
            for parameter in part.parameters():
                parameter.data = parameter.data.to(dtype)

    def cross_layers(self, model: Any) -> int:
        return len(_cross_attention(model.qformer))

    def graphs(
        self, model: Any, method: VotingMethod, compared: Sequence[VotingMethod] | None = None
    ) -> Iterator[Graph]:
        config = model.config
        height, width = _pair(config.vision_config.image_size)
        voting = qformer_voting.QFormerVoting(
            model.query_tokens, model.qformer, model.language_projection, method, compared
        )
        yield vision_encoder.graph(model.vision_model, height, width, voting.reads_image_weights)
        patch_height, patch_width = _pair(config.vision_config.patch_size)
        image_tokens = (height // patch_height) * (width // patch_width) + 1  # CLS
        dtype = next(model.vision_model.parameters()).dtype
        yield qformer_voting.graph(voting, image_tokens, config.vision_config.hidden_size, dtype)
        yield language_model.graph(model.language_model, _cache_shapes(model.language_model))

    @torch.no_grad()
    def image_embeds(self, model: Any, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with _attention_of([model.vision_model.encoder.layers[-1].self_attn]) as (last,):
            embeds = model.vision_model(pixel_values).last_hidden_state
        return embeds, last[0].float().mean(1).sum(1)

    @torch.no_grad()
    def query_embeds(
        self, model: Any, image_embeds: torch.Tensor, image_weights: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, Evidence]:
        cross = _cross_attention(model.qformer)
        own = [layer.attention.attention for layer in model.qformer.encoder.layer]
        with _attention_of([*cross, *own]) as maps:
            embeds = model.qformer(
                query_embeds=model.query_tokens.expand(len(image_embeds), -1, -1), encoder_hidden_states=image_embeds
            ).last_hidden_state
        evidence = Evidence(
            cross_attention=[layer[0] for layer in maps[: len(cross)]],
            self_attention=[layer[0] for layer in maps[len(cross) :]],
            query_embeds=embeds,
            image_embeds=image_embeds,
            image_weights=image_weights,
        )
        return model.language_projection(embeds), evidence


def _cross_attention(qformer: Any) -> list[torch.nn.Module]:
    return [layer.crossattention.attention for layer in qformer.encoder.layer if layer.has_cross_attention]


@contextmanager
def _attention_of(modules: Sequence[torch.nn.Module]) -> Iterator[list[list[torch.Tensor]]]:
    """Per module, the probabilities of its calls.

    Hooks on the modules themselves: what transformers records as `attentions` also holds other maps.
    """
    maps: list[list[torch.Tensor]] = [[] for _ in modules]
    hooks = [
        module.register_forward_hook(lambda _, __, output, into=into: into.append(output[1]))
        for module, into in zip(modules, maps)
    ]
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


@torch.no_grad()
def _cache_shapes(lm: Any) -> list[tuple[int, int]]:
    """(key-value heads, head width) of every layer, as the model itself writes them."""
    cache: Any = DynamicCache(config=lm.config)
    lm(input_ids=torch.zeros(1, 1, dtype=torch.long), past_key_values=cache, use_cache=True)
    return [(layer.keys.shape[1], layer.keys.shape[3]) for layer in cache.layers]
