"""Rates of the machine: matrix products per second, and bytes per second, with a number of threads.

    python -m catp.calibration.benchmark.rates THREADS

prints them as JSON. It is a process of its own because OpenBLAS takes its number of threads when it is loaded.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from catp.calibration.benchmark.costs.base import StageCost
from catp.runtime.errors import CatpError

M, K, N = 1024, 1024, 4096
"""A feed-forward matrix of a large model, and enough rows to keep every core busy."""
ROWS, COLUMNS = 4096, 16384
"""256 MiB of float32: more than any cache holds."""
TRIES = 7


class Rates(BaseModel):
    """Best of several tries each, and of several libraries: what one of them reaches, the machine can."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    threads: int
    gflops: float = Field(
        description="float32 matrix product of [1024, 1024] and [1024, 4096], by numpy's BLAS or ONNX Runtime; 1e9/s"
    )
    int8_gops: float | None = Field(
        default=None,
        description="the same of uint8 and int8, by ONNX Runtime; None where it or onnx is not installed",
    )
    read_gbytes: float = Field(description="256 MiB read once, by a matrix-vector product or a maximum; 1e9 bytes/s")
    copy_gbytes: float = Field(description="256 MiB copied, read and written bytes both counted; 1e9 bytes/s")

    def operations_per_second(self, integer: bool) -> float:
        """Operations per second of matrix products in float32, or in int8 where that is known."""
        return 1e9 * (self.int8_gops if integer and self.int8_gops else self.gflops)

    @property
    def bytes_per_second(self) -> float:
        return 1e9 * max(self.read_gbytes, self.copy_gbytes)

    def least_ms(self, stage: StageCost) -> float:
        """The roofline: milliseconds below which the stage can't be."""
        return stage.fastest_ms(self.operations_per_second(stage.integer), self.bytes_per_second)


def best_rates(rates: Sequence[Rates]) -> Rates:
    """The best rates that were seen; of the same number of threads."""
    integer = [found.int8_gops for found in rates if found.int8_gops]
    return Rates(
        threads=rates[0].threads,
        gflops=max(found.gflops for found in rates),
        int8_gops=max(integer, default=None),
        read_gbytes=max(found.read_gbytes for found in rates),
        copy_gbytes=max(found.copy_gbytes for found in rates),
    )


def measure_rates(threads: int) -> Rates:
    """Takes about two seconds and 512 MiB.

    Raises:
        CatpError: the measurement failed, for want of memory say.
    """
    names = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
    environment = {**os.environ, **dict.fromkeys(names, str(threads))}
    command = [sys.executable, "-m", __name__, str(threads)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]
        raise CatpError(f"machine rates: they could not be measured ({reason})")
    return Rates.model_validate_json(result.stdout)


def _measure(threads: int) -> Rates:
    left, right = np.ones((M, K), np.float32), np.ones((K, N), np.float32)
    product = np.empty((M, N), np.float32)
    seconds = [_fastest(lambda: np.matmul(left, right, out=product))]
    if find_spec("onnx") and find_spec("onnxruntime"):
        seconds.append(_in_onnx_runtime(left, right, "MatMul", threads))
        integers = left.astype(np.uint8), right.astype(np.int8)
        integer = [_in_onnx_runtime(*integers, "MatMulInteger", threads)]
    else:
        integer = []
    operations = 2 * M * K * N / 1e9
    large, vector = np.ones((ROWS, COLUMNS), np.float32), np.ones(COLUMNS, np.float32)
    copied = np.empty_like(large)
    parts = [slice(ROWS * i // threads, ROWS * (i + 1) // threads) for i in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        read = min(
            _fastest(lambda: large @ vector), _fastest(lambda: list(pool.map(lambda part: large[part].max(), parts)))
        )
        copy = _fastest(lambda: list(pool.map(lambda part: np.copyto(copied[part], large[part]), parts)))
    return Rates(
        threads=threads,
        gflops=operations / min(seconds),
        int8_gops=operations / integer[0] if integer else None,
        read_gbytes=large.nbytes / read / 1e9,
        copy_gbytes=2 * large.nbytes / copy / 1e9,
    )


def _in_onnx_runtime(left: np.ndarray, right: np.ndarray, product: str, threads: int) -> float:
    """Seconds of a matrix product by the operator of that name; `right` is a constant, as weights are."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    kind = helper.np_dtype_to_tensor_dtype(left.dtype)
    result = TensorProto.FLOAT if left.dtype == np.float32 else TensorProto.INT32
    graph = helper.make_graph(
        [helper.make_node(product, ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", kind, left.shape)],
        [helper.make_tensor_value_info("y", result, (M, N))],
        [numpy_helper.from_array(right, "w")],
    )
    # Opset and format of long ago: any ONNX Runtime reads them.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return _fastest(lambda: session.run(None, {"x": left}))


def _fastest(call: Callable[[], object]) -> float:
    """Seconds. The fastest try is the one that the rest of the machine disturbed least."""
    found = []
    for _ in range(TRIES):
        started = time.perf_counter()
        call()
        found.append(time.perf_counter() - started)
    return min(found)


if __name__ == "__main__":
    print(json.dumps(_measure(int(sys.argv[1])).model_dump()))
