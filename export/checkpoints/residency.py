"""The parts of a checkpoint in memory: weights stay in their files, and come in with the part of the model that runs.

PyTorch maps safetensors: a parameter whose type is the file's takes no memory until it is read. Kept here is that it
takes none after it was read either, and that half precision becomes float32 for one part at a time.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import mmap
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_HALF = (torch.float16, torch.bfloat16)
_MADV_PAGEOUT = 21  # Linux 5.4; Python has no name for it
_WORTH_IT = 1 << 16  # bytes


@contextmanager
def one_part_in_memory(model: torch.nn.Module) -> Iterator[None]:
    """While it lasts, `model` computes in float32, and only the weights of the part that ran last are in memory.

    Parts are the model's direct children: vision model, Q-Former, language model. One comes in before any module in it
    is called: Hugging Face calls a language model's embeddings without the language model around them.
    """
    own = _Part(model, recurse=False)
    loaded: list[_Part] = []

    def bring_in(part: _Part) -> None:
        if part not in loaded:
            while loaded:
                loaded.pop().leave()
            loaded.append(part)
            part.enter()

    own.enter()
    hooks = [
        module.register_forward_pre_hook(lambda _, __, part=part: bring_in(part))
        for part in map(_Part, model.children())
        for module in part.module.modules()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for part in (*loaded, own):
            part.leave()


class _Part:
    """A module whose weights are in memory, in float32, between `enter` and `leave`."""

    def __init__(self, module: torch.nn.Module, recurse: bool = True) -> None:
        self.module = module
        self._recurse = recurse
        self._stored: list[tuple[torch.Tensor, torch.Tensor]] = []

    def enter(self) -> None:
        for tensor in (*self.module.parameters(self._recurse), *self.module.buffers(self._recurse)):
            stored = tensor.data
            self._stored.append((tensor, stored))
            if stored.dtype in _HALF:
                tensor.data = stored.float()
                give_back(stored)

    def leave(self) -> None:
        for tensor, stored in self._stored:
            tensor.data = stored
            give_back(stored)
        self._stored.clear()


def give_back(tensor: torch.Tensor) -> None:
    """Tell the system that a mapped tensor is not needed for now: it's read again from its file when it is.

    Nothing is lost where the tensor is not mapped, and nothing happens on systems other than Linux.
    """
    size = tensor.numel() * tensor.itemsize
    if sys.platform == "linux" and size >= _WORTH_IT:
        begin = tensor.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
        end = tensor.data_ptr() + size
        # Advice only: where the system does not follow it, memory is taken back when somebody needs it.
        _libc().madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _MADV_PAGEOUT)


def trim() -> None:
    """Return freed memory to the system: the C library keeps most of what large libraries free in small pieces."""
    gc.collect()
    if sys.platform == "linux" and hasattr(_libc(), "malloc_trim"):  # glibc has it, musl needs none
        _libc().malloc_trim(0)


@functools.cache
def _libc() -> Any:
    return ctypes.CDLL(None)
