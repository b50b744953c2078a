"""What the machine can do: matrix products per second, and bytes per second, with a number of threads.

    python -m catp.calibration.benchmark.rates THREADS

prints them as JSON. It is a process of its own because OpenBLAS takes its number of threads when it is loaded.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from catp.runtime.errors import CatpError

M, K, N = 1024, 1024, 4096
"""A feed-forward matrix of a large model, and enough rows to keep every core busy."""
ROWS, COLUMNS = 4096, 16384
"""256 MiB of float32: more than any cache holds."""
TRIES = 7


class Rates(BaseModel):
    """Best of several tries each."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    threads: int
    gflops: float = Field(description="float32 matrix product of [1024, 1024] and [1024, 4096], numpy's BLAS; 1e9/s")
    read_gbytes: float = Field(description="256 MiB read once, by a matrix-vector product or a maximum; 1e9 bytes/s")
    copy_gbytes: float = Field(description="256 MiB copied, read and written bytes both counted; 1e9 bytes/s")

    @property
    def flops_per_second(self) -> float:
        return 1e9 * self.gflops

    @property
    def bytes_per_second(self) -> float:
        return 1e9 * max(self.read_gbytes, self.copy_gbytes)


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
    gemm = _fastest(lambda: np.matmul(left, right, out=product))
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
        gflops=2 * M * K * N / gemm / 1e9,
        read_gbytes=large.nbytes / read / 1e9,
        copy_gbytes=2 * large.nbytes / copy / 1e9,
    )


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
