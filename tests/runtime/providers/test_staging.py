"""Staging buffers are reused, and never while a copy may still be under way."""

import numpy as np

import catp.runtime.providers.base  # noqa: F401  numpy knows "bfloat16"
from catp.runtime.providers.staging import StagingBuffer, StagingPool


def allocate(size: int) -> StagingBuffer:
    memory = np.zeros(size, np.uint8)
    return StagingBuffer(memory.ctypes.data, memory)


def test_a_buffer_in_flight_is_not_handed_out_again() -> None:
    pool = StagingPool(allocate)
    first, second = pool.take(100), pool.take(100)
    assert first is not second
    pool.release()
    assert {pool.take(100), pool.take(50)} == {first, second}


def test_sizes_are_rounded_up_so_that_buffers_fit_the_next_call() -> None:
    pool = StagingPool(allocate)
    buffer = pool.take(5000)
    assert buffer.size == 8192
    pool.release()
    assert pool.take(8192) is buffer
    assert pool.take(8193).size == 16384
    assert pool.take(1).size == 4096


def test_a_view_has_the_buffers_memory() -> None:
    buffer = allocate(4096)
    view = buffer.view((2, 3), np.dtype(np.float32))
    view[...] = 7
    assert view.ctypes.data == buffer.address
    assert buffer.memory[:24].view(np.float32).tolist() == [7] * 6
    narrow = buffer.view((2, 3), np.dtype("bfloat16"))
    narrow[...] = 3
    assert buffer.memory[:12].view(np.uint16).tolist() == [0x4040] * 6
