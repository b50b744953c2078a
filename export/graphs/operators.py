"""ONNX operators that PyTorch has no equal for, emitted while Hugging Face modules are traced.

Hugging Face looks attention and mask functions up by name in public registries; under the name
`ONNX_ATTENTION` ours are there. Traced modules then contain `Attention` (opset 24) as one operator, with
the caller's mask, instead of whatever a decomposition makes of it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from transformers.cache_utils import CacheLayerMixin
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

OPSET = 24
"""The first opset with TensorScatter and with an Attention that takes a boolean mask over a longer cache."""

ONNX_ATTENTION = "catp_onnx"
_FLOAT = 1  # TensorProto.FLOAT

REPLACED: dict[type[torch.nn.Module], Callable[..., Any]] = {}
"""Attention modules that look no function up: what is called with them, in place of their `forward`, while tracing."""

_recorder: ContextVar[dict[torch.nn.Module, torch.Tensor] | None] = ContextVar("attention_maps", default=None)


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    position_bias: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """query [B,H,S,d], key and value [B,Hkv,M,d] -> [B,S,H,d].

    Args:
        attention_mask: bool, broadcast to [B,H,S,M], or None.
        position_bias: T5's, which is added to the logits and, made by a graph's wrapper, holds the mask too.
    """
    if position_bias is not None:
        attention_mask = position_bias
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    recorded = _recorder.get()
    if recorded is not None and module in recorded:
        # Votes are counted in float32 whatever the graph's precision: half-precision rounding flips ranks.
        logits = (query @ key.transpose(-1, -2)).float() * scaling
        if attention_mask is not None:
            logits = logits.masked_fill(~attention_mask, torch.finfo(logits.dtype).min)
        maps = torch.softmax(logits, -1)
        recorded[module] = maps
        return (maps.to(value.dtype) @ value).transpose(1, 2), None
    if attention_mask is None and isinstance(key.shape[2], int) and key.shape[2] == 1 and value.shape == query.shape:
        # A lone query that attends to itself reads its own value. TensorRT-RTX 1.7 has no kernel for it in one head.
        return value.transpose(1, 2), None
    attributes: dict[str, Any] = {"scale": float(scaling)}
    if query.dtype != torch.float32:
        attributes["softmax_precision"] = _FLOAT
    if isinstance(query.shape[0], int) and query.shape[0] == 1:
        # Queries that are the same for every image meet the images' keys: the operator does not broadcast them.
        query = query.expand(key.shape[0], -1, -1, -1)
    if isinstance(key.shape[2], int) and not isinstance(query.shape[2], int):
        # Hugging Face leaves the number of heads to be inferred, which TensorRT can't where it must match known ones.
        together = query.transpose(1, 2).flatten(2)
        query = together.unflatten(2, (query.shape[1], query.shape[3])).transpose(1, 2)
    inputs = (query, key, value) if attention_mask is None else (query, key, value, attention_mask)
    output = torch.onnx.ops.symbolic(
        "Attention", inputs, attributes, dtype=query.dtype, shape=query.shape, version=OPSET
    )
    return output.transpose(1, 2), None


def _mask(*_: Any, attention_mask: torch.Tensor | None = None, **__: Any) -> torch.Tensor | None:
    """The mask is made by the graph's wrapper; Hugging Face passes it through."""
    return attention_mask


ALL_ATTENTION_FUNCTIONS.register(ONNX_ATTENTION, attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(ONNX_ATTENTION, _mask)


@contextmanager
def onnx_attention(model: torch.nn.Module) -> Iterator[None]:
    """While tracing, every attention of `model` is emitted as an ONNX operator; restored afterwards.

    A module that runs under it outside a trace computes nothing: symbolic operators have no eager kernel.
    """
    found = [getattr(module, "config", None) for module in model.modules()]
    configs: dict[int, Any] = {id(config): config for config in found if hasattr(config, "_attn_implementation")}
    before = {key: config._attn_implementation for key, config in configs.items()}
    replaced = [module for module in model.modules() if type(module) in REPLACED]
    try:
        for module in replaced:
            module.forward = functools.partial(REPLACED[type(module)], module)  # of this object, not of its class
        for config in configs.values():
            config._attn_implementation = ONNX_ATTENTION
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation = before[key]
        for module in replaced:
            del module.forward


@contextmanager
def recorded_attention(modules: list[torch.nn.Module]) -> Iterator[dict[torch.nn.Module, torch.Tensor]]:
    """While it lasts, these attention modules materialise their probabilities, float32 [B,H,N,I], in the result."""
    maps: dict[torch.nn.Module, torch.Tensor] = dict.fromkeys(modules, torch.empty(0))
    token = _recorder.set(maps)
    try:
        yield maps
    finally:
        _recorder.reset(token)


def top_k(values: torch.Tensor, k: torch.Tensor, size: int | torch.SymInt, largest: bool) -> torch.Tensor:
    """Indices int64 [B, size] of the k largest or smallest of `values` [B, N], sorted; `k` is int64 [1] at run time."""
    shape = (values.shape[0], size)
    _, indices = torch.onnx.ops.symbolic_multi_out(
        "TopK",
        (values, k),
        {"axis": -1, "largest": int(largest), "sorted": 1},
        dtypes=(values.dtype, torch.int64),
        shapes=(shape, shape),
        version=OPSET,
    )
    return indices


def tied_linear(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """hidden [B, D] times weight [V, D] transposed, as one Gemm: the tied embedding table is stored once."""
    inputs = (hidden, weight) if bias is None else (hidden, weight, bias)
    return torch.onnx.ops.symbolic(
        "Gemm", inputs, {"transB": 1}, dtype=hidden.dtype, shape=(hidden.shape[0], weight.shape[0]), version=OPSET
    )


class SlotLayer(CacheLayerMixin):
    """One layer's cache of M slots, keys and values [B, H, M, d], written in place at `write_indices` [B]."""

    keys: Any
    values: Any

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, write_indices: torch.Tensor) -> None:
        super().__init__()
        self.keys, self.values, self.write_indices = keys, values, write_indices
        self.is_initialized = True

    def lazy_initialization(self, *_: Any) -> None:
        """The buffers come from outside."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.keys = self._scatter(self.keys, key_states)
        self.values = self._scatter(self.values, value_states)
        return self.keys, self.values

    def _scatter(self, cache: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        inputs = (cache, states, self.write_indices)
        return torch.onnx.ops.symbolic(
            "TensorScatter", inputs, {"axis": 2}, dtype=cache.dtype, shape=cache.shape, version=OPSET
        )

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.keys.shape[2], 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return self.keys.shape[2]
