"""Attention probabilities of Hugging Face modules while plain PyTorch runs them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch


@contextmanager
def attention_of(modules: Sequence[torch.nn.Module]) -> Iterator[list[list[torch.Tensor]]]:
    """Per module, the probabilities of its calls, each [B, H, queries, keys].

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
