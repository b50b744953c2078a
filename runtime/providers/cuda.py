"""A CUDA device: its memory, one stream, and copies through pinned staging (cuda-python's runtime API)."""

from __future__ import annotations

import ctypes
import weakref
from typing import Any

import numpy as np

from catp.runtime.errors import CatpError, UsageError
from catp.runtime.providers.row_copies import RowCopies
from catp.runtime.providers.staging import StagingBuffer, StagingPool

try:
    from cuda.bindings import driver
    from cuda.bindings import runtime as cudart
except ImportError:
    driver = cudart = None

ALIGNMENT = 256
"""Bytes of the smallest allocation: even an empty tensor has an address, which TensorRT asks for."""


def _check(result: tuple[Any, ...], what: str) -> Any:
    """The value of a CUDA call.

    Raises:
        CatpError: it failed; the message has CUDA's name for the failure.
    """
    code, *values = result
    if code != cudart.cudaError_t.cudaSuccess:
        raise CatpError(f"CUDA: {what} failed: {code.name}")
    return values[0] if values else None


def compute_capability() -> str | None:
    """Compute capability of the first CUDA device, such as "8.6"; None without a device, a driver or cuda-python."""
    if cudart is None:
        return None
    code, count = cudart.cudaGetDeviceCount()
    if code != cudart.cudaError_t.cudaSuccess or count == 0:
        return None
    properties = _check(cudart.cudaGetDeviceProperties(0), "reading the device's properties")
    return f"{properties.major}.{properties.minor}"


def device_memory() -> int | None:
    """Bytes of the first CUDA device that are in use, by whomever; None where there is no device to ask."""
    if compute_capability() is None:
        return None
    code, free, total = cudart.cudaMemGetInfo()
    return int(total - free) if code == cudart.cudaError_t.cudaSuccess else None


def copy_rectangles(source: int, target: int, copies: RowCopies, stream: Any = 0) -> None:
    """Queue copies from address to address within the device's memory.

    Raises:
        UsageError: cuda-python is not installed.
    """
    if cudart is None:
        raise UsageError("cuda-python is not installed, and beams need it on this provider; pip install '.[gpu]'")
    kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToDevice
    width, height, source_pitch, target_pitch = copies.width, copies.height, copies.source_pitch, copies.target_pitch
    for read, written in copies.offsets:
        to, of = target + written, source + read
        _check(
            cudart.cudaMemcpy2DAsync(to, target_pitch, of, source_pitch, width, height, kind, stream), "copying rows"
        )


def wait_for_default_stream() -> None:
    """Until what was queued without a stream is done."""
    _check(cudart.cudaStreamSynchronize(0), "copying rows")


class Allocation:
    """Device memory that lives as long as this object."""

    def __init__(self, device: Device, size: int) -> None:
        self.address = int(
            _check(cudart.cudaMallocAsync(max(size, ALIGNMENT), device.stream), f"allocating {size:,} bytes")
        )
        # In stream order, so what the GPU still has to do with this memory comes first.
        self._free = weakref.finalize(self, cudart.cudaFreeAsync, self.address, device.stream)


class Device:
    """The first CUDA device with the one stream that everything of a pipeline is queued on.

    Raises:
        UsageError: cuda-python is not installed, or there is no device.
    """

    def __init__(self) -> None:
        if cudart is None:
            raise UsageError("cuda-python is not installed; pip install '.[rtx]' or '.[tensorrt]'")
        code, count = cudart.cudaGetDeviceCount()
        if code != cudart.cudaError_t.cudaSuccess or count == 0:
            reason = code.name if code != cudart.cudaError_t.cudaSuccess else "cudaErrorNoDevice"
            raise UsageError(f"no CUDA device was found ({reason}); use --provider cpu to run on the CPU")
        _check(cudart.cudaSetDevice(0), "choosing the device")
        properties = _check(cudart.cudaGetDeviceProperties(0), "reading the device's properties")
        self.name = properties.name.decode()
        self.compute_capability = f"{properties.major}.{properties.minor}"
        self._keep_freed_memory()
        self.stream = _check(cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking), "creating a stream")
        self._staging = StagingPool(_pinned)

    def _keep_freed_memory(self) -> None:
        """Otherwise every synchronisation gives freed memory back to the system, and a decode step synchronises."""
        pool = _check(cudart.cudaDeviceGetDefaultMemPool(0), "finding the memory pool")
        attribute = cudart.cudaMemPoolAttr.cudaMemPoolAttrReleaseThreshold
        everything = driver.cuuint64_t(2**64 - 1)
        _check(cudart.cudaMemPoolSetAttribute(pool, attribute, everything), "setting up the memory pool")

    @property
    def stream_handle(self) -> int:
        """The stream as TensorRT takes it."""
        return int(self.stream)

    def allocate(self, size: int) -> Allocation:
        return Allocation(self, size)

    def zero(self, allocation: Allocation, size: int) -> None:
        _check(cudart.cudaMemsetAsync(allocation.address, 0, size, self.stream), "zeroing memory")

    def upload(self, address: int, array: np.ndarray[Any, Any]) -> None:
        """Queue a copy to the device; the caller may change `array` as soon as this returns."""
        if array.nbytes == 0:
            return
        buffer = self._staging.take(array.nbytes)
        buffer.view(array.shape, array.dtype)[...] = array
        kind = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        _check(
            cudart.cudaMemcpyAsync(address, buffer.address, array.nbytes, kind, self.stream), "copying to the device"
        )

    def download(self, address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        """Wait for everything queued, and return a copy of a tensor."""
        size = int(np.prod(shape)) * dtype.itemsize
        if size == 0:
            self.synchronize()
            return np.zeros(shape, dtype)
        buffer = self._staging.take(size)
        kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        _check(cudart.cudaMemcpyAsync(buffer.address, address, size, kind, self.stream), "copying to the host")
        self._wait()
        result = buffer.view(shape, dtype).copy()
        self._staging.release()
        return result

    def copy_rows(self, source: int, target: int, copies: RowCopies) -> None:
        """Queue copies from address to address; nothing passes through the host."""
        copy_rectangles(source, target, copies, self.stream)

    def synchronize(self) -> None:
        """Wait for everything queued; staging buffers are free again."""
        self._wait()
        self._staging.release()

    def _wait(self) -> None:
        _check(cudart.cudaStreamSynchronize(self.stream), "running on the device")

    def record_event(self) -> Event:
        """Behind everything queued."""
        return Event(self)

    # --- CUDA graphs: a queue of launches recorded once and launched as one ----------------------------

    def begin_capture(self) -> None:
        mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        _check(cudart.cudaStreamBeginCapture(self.stream, mode), "beginning a graph capture")

    def end_capture(self) -> CapturedGraph | None:
        """The captured graph, ready to launch; None where something in it can't be captured."""
        code, graph = cudart.cudaStreamEndCapture(self.stream)
        if code != cudart.cudaError_t.cudaSuccess:
            cudart.cudaGetLastError()  # the failed capture must not fail the next call
            return None
        executable = _check(cudart.cudaGraphInstantiate(graph, 0), "instantiating a graph")
        _check(cudart.cudaGraphDestroy(graph), "releasing a graph")
        return CapturedGraph(executable, self.stream)


class Event:
    """A point in the stream; how far apart two are is measured by the device itself."""

    def __init__(self, device: Device) -> None:
        self._event = _check(cudart.cudaEventCreate(), "creating an event")
        self._free = weakref.finalize(self, cudart.cudaEventDestroy, self._event)
        _check(cudart.cudaEventRecord(self._event, device.stream), "recording an event")

    def milliseconds_since(self, earlier: Event) -> float:
        _check(cudart.cudaEventSynchronize(self._event), "waiting for an event")
        return float(_check(cudart.cudaEventElapsedTime(earlier._event, self._event), "reading a time"))


class CapturedGraph:
    """A captured sequence of launches; the addresses in it must stay valid as long as it is launched."""

    def __init__(self, executable: Any, stream: Any) -> None:
        self._executable = executable
        self._stream = stream
        self._free = weakref.finalize(self, cudart.cudaGraphExecDestroy, executable)

    def launch(self) -> None:
        _check(cudart.cudaGraphLaunch(self._executable, self._stream), "launching a graph")


def _pinned(size: int) -> StagingBuffer:
    """Page-locked host memory, which the device copies from without the driver's own staging."""
    address = int(_check(cudart.cudaMallocHost(size), f"allocating {size:,} bytes of pinned memory"))
    memory = (ctypes.c_byte * size).from_address(address)
    buffer = StagingBuffer(address, np.frombuffer(memoryview(memory), np.uint8))
    weakref.finalize(buffer, cudart.cudaFreeHost, address)
    return buffer
