"""A decoder-only language model (OPT, Llama, and any other that takes position ids)."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from transformers import DynamicCache

from catp.export.graphs import Graph, language_model
from catp.export.language_models.base import set_parameters
from catp.runtime.bundle.chains import LanguageKind
from catp.runtime.errors import UsageError

_NOT_EXPRESSED = {
    "sliding_window": "uses sliding-window attention",
    "attn_logit_softcapping": "caps attention logits",
    "final_logit_softcapping": "caps its logits",
    "logit_scale": "scales its logits",
    "logits_scaling": "scales its logits",
    "num_local_experts": "sends every token to experts of its own",
    "num_experts": "sends every token to experts of its own",
}
"""By the name of a setting, what a language model does when it is on (neither 0 nor 1)."""


class DecoderOnly:
    """language_model, for prefill and decode."""

    kind: LanguageKind = "decoder-only"
    accepts = "with position ids and full attention: OPT, Llama (Vicuna), ..."

    def check_config(self, config: Any, name: str) -> None:
        for asked, what in _NOT_EXPRESSED.items():
            if getattr(config, asked, None) not in (None, 0, 1):
                raise UsageError(
                    f"model {name}: its language model {config.model_type!r} {what} ({asked} in its configuration), "
                    "which the exported graph does not do; accepted: language models such as OPT and Llama"
                )

        if kind := _changing_rope(config):
            raise UsageError(
                f"model {name}: its language model {config.model_type!r} has rotary positions that change with the "
                f"length at run time (rope_type {kind!r}), which the exported graph's do not; "
                "accepted: fixed ones (default, linear, yarn, llama3)"
            )
        width, words = config.hidden_size, getattr(config, "word_embed_proj_dim", None)
        if words not in (None, width):
            raise UsageError(
                f"model {name}: its language model {config.model_type!r} has words of {words} dimensions and computes "
                f"in {width} (word_embed_proj_dim, hidden_size): transformers' BLIP-2 puts query tokens of {width} "
                f"among words of {words}; accepted: language models in which both are the same"
            )

    def check(self, lm: Any, name: str) -> None:
        if "position_ids" not in inspect.signature(lm.base_model.forward).parameters:
            raise UsageError(
                f"model {name}: its language model {lm.config.model_type!r} takes no position ids, "
                "so kept tokens can't keep their positions; accepted: language models with position_ids, such as OPT"
            )
        if not lm._supports_attention_backend:
            # Falcon, StableLM and the like: their attention would take the graph's mask for numbers to add.
            raise UsageError(
                f"model {name}: its language model {lm.config.model_type!r} brings attention of its own; "
                "accepted: language models that take transformers' attention, such as OPT and Llama"
            )
        if getattr(lm.config, "max_position_embeddings", None) is None:
            raise UsageError(
                f"model {name}: its language model {lm.config.model_type!r} does not say how many positions it has; "
                "accepted: language models with max_position_embeddings, such as OPT"
            )

    def set_dtype(self, lm: Any, dtype: torch.dtype) -> None:
        set_parameters(lm, dtype)

    def graphs(self, lm: Any) -> Iterator[Graph]:
        yield language_model.graph(lm, _cache_shapes(lm))

    def max_positions(self, lm: Any) -> int | None:
        return lm.config.max_position_embeddings


def _changing_rope(config: Any) -> str | None:
    """The kind of rotary positions whose frequencies are computed anew as a sequence grows, of any kind of layer."""
    given = getattr(config, "rope_parameters", None) or {}
    of_layers = [given, *(value for value in given.values() if isinstance(value, dict))]
    kinds = [str(one.get("rope_type", one.get("type"))) for one in of_layers]
    return next((kind for kind in kinds if "dynamic" in kind or kind == "longrope"), None)


@torch.no_grad()
def _cache_shapes(lm: Any) -> list[tuple[int, int]]:
    """(key-value heads, head width) of every layer, as the model itself writes them."""
    cache: Any = DynamicCache(config=lm.config)
    lm(input_ids=torch.zeros(1, 1, dtype=torch.long), cache=cache, use_cache=True)
    return [(layer.keys.shape[1], layer.keys.shape[3]) for layer in cache.layers]
