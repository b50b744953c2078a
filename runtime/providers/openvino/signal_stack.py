"""The stack on which this thread handles signals, kept as it was while OpenVINO works."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _Stack(ctypes.Structure):
    """stack_t of sigaltstack(2)."""

    _fields_ = (("base", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def signal_stack_kept() -> Iterator[None]:
    """Put this thread's alternate signal stack back when the block ends; on Linux, elsewhere nothing is done.

    Each `openvino.Core` brings a stack of its own (SigAltStackSetup of its CPU plugin; seen in 2026.4.1) and frees it
    with itself. Of two that end in the order in which they began, the second puts the first one's back, which is freed:
    the next signal that Python handles (Ctrl-C, or the end of a child process where DataLoader watches its workers)
    ends the process without a word. A Core whose stack is not in use any more puts none back.
    """
    if sys.platform != "linux":
        yield
        return
    libc, before = ctypes.CDLL(None, use_errno=True), _Stack()
    libc.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        libc.sigaltstack(ctypes.byref(before), None)
