"""Rows copied within an engine's memory: for a device as rectangles of bytes, on the CPU for real."""

from pathlib import Path

import numpy as np
import pytest

from catp.runtime.bundle.folder import open_bundle
from catp.runtime.providers import open_provider
from catp.runtime.providers.row_copies import RowCopies, row_copies

ROWS, TARGETS, LENGTH = np.array([3, 0, 3]), np.array([1, 4, 0]), 5


@pytest.fixture
def tensors() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Source, target, and what the target should become."""
    rng = np.random.default_rng(0)
    source, target = rng.random((4, 3, 8, 6), np.float32), rng.random((5, 3, 9, 6), np.float32)
    wanted = target.copy()
    for row, target_row in zip(ROWS, TARGETS):
        wanted[target_row, :, :LENGTH] = source[row, :, :LENGTH]
    return source, target, wanted


def test_rectangles_hold_the_rows_and_nothing_else(tensors: tuple[np.ndarray, ...]) -> None:
    """As cudaMemcpy2D copies: `height` lines of `width` bytes, a pitch apart on either side."""
    source, target, wanted = tensors
    copies = row_copies(source.shape, target.shape, source.itemsize, ROWS, TARGETS, LENGTH)
    read, written = source.reshape(-1).view(np.uint8), target.reshape(-1).view(np.uint8)
    for source_offset, target_offset in copies.offsets:
        for line in range(copies.height):
            start, end = source_offset + line * copies.source_pitch, target_offset + line * copies.target_pitch
            written[end : end + copies.width] = read[start : start + copies.width]
    assert (target == wanted).all()


def test_a_tensor_without_heads() -> None:
    copies = row_copies((4, 8, 6), (4, 8, 6), 2, np.array([2]), np.array([0]), 8)
    assert copies == RowCopies(width=96, height=1, source_pitch=96, target_pitch=96, offsets=[(192, 0)])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_onnx_runtime_on_the_cpu(demo_bundle: Path, tensors: tuple[np.ndarray, ...], dtype: str) -> None:
    engine = open_provider("cpu").engine(open_bundle(demo_bundle), "language_model")
    source, target, wanted = (tensor.astype(dtype) for tensor in tensors)
    filled = [engine.zeros(tensor.shape, dtype) for tensor in (source, target)]
    for tensor, content in zip(filled, (source, target)):
        tensor.value.update_inplace(content)  # type: ignore[attr-defined]
    engine.copy_rows(filled[0], ROWS, filled[1], TARGETS, LENGTH)
    assert (filled[1].numpy() == wanted).all() and (filled[0].numpy() == source).all()
    engine.copy_rows(filled[1], np.array([4]), filled[1], np.array([2]), 9)
    assert (filled[1].numpy()[2] == wanted[4]).all()
