"""ONNX Runtime as a provider, on the CPU, CUDA or its own TensorRT, with tensors bound to device memory."""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_dtypes import bfloat16

from catp.runtime.bundle.folder import Bundle
from catp.runtime.bundle.manifest import Purpose
from catp.runtime.errors import BundleError, GraphError, UsageError
from catp.runtime.limits import CACHE_ROUNDING, THREADS_PER_CORE
from catp.runtime.providers.base import DeviceTensor, HostMoment, Value
from catp.runtime.providers.row_copies import row_copies
from catp.runtime.system.optional_imports import optional_import

ort, _MISSING = optional_import("onnxruntime")

_EXECUTION_PROVIDERS = {
    "cpu": ["CPUExecutionProvider"],
    "cuda": ["CUDAExecutionProvider"],
    # Builds engines while it loads, for the parts of a graph that it knows; CUDA runs the rest.
    "ort-tensorrt": ["TensorrtExecutionProvider", "CUDAExecutionProvider"],
}
_DEVICES = {"cpu": "cpu", "cuda": "cuda", "ort-tensorrt": "cuda"}
_EXTRAS = {"cpu": "cpu", "cuda": "gpu", "ort-tensorrt": "gpu"}

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
    "tensor(int64)": "int64",
}

_BFLOAT16 = 16  # TensorProto.BFLOAT16


class OrtTensor:
    """An OrtValue, with the name the orchestrator knows it by.

    Args:
        memory: the array that the value lies in, where it is host memory made by numpy: it is read and written
            directly, which takes a quarter of the time of going through the value.
    """

    def __init__(self, value: Any, memory: np.ndarray[Any, Any] | None = None) -> None:
        self.value = value
        self._memory = memory

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape())

    def numpy(self) -> np.ndarray[Any, Any]:
        return self.value.numpy() if self._memory is None else self._memory

    def write(self, array: np.ndarray[Any, Any]) -> None:
        """Copy an array of the same shape into it."""
        if self._memory is None:
            self.value.update_inplace(np.ascontiguousarray(array))
        else:
            self._memory[...] = array

    def rows(self, first: int, count: int) -> OrtRows:
        return OrtRows(self, first, count)

    def bind_input(self, binding: Any, name: str) -> None:
        binding.bind_ortvalue_input(name, self.value)

    def bind_output(self, binding: Any, name: str) -> None:
        binding.bind_ortvalue_output(name, self.value)


class OrtRows(OrtTensor):
    """Rows of a tensor, bound by their address: ONNX Runtime has no value that is a part of another."""

    def __init__(self, whole: OrtTensor, first: int, count: int) -> None:
        super().__init__(whole.value)  # whose memory lives as long as this does
        rows, *others = whole.shape
        if not 0 <= first < first + count <= rows:
            raise ValueError(f"rows {first} to {first + count} of {rows}")
        self._shape = (count, *others)
        self._first = first
        self._address = whole.value.data_ptr() + first * (whole.value.tensor_size_in_bytes() // rows)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    def numpy(self) -> np.ndarray[Any, Any]:
        return self.value.numpy()[self._first : self._first + self._shape[0]]

    def write(self, array: np.ndarray[Any, Any]) -> None:
        raise NotImplementedError("rows are written by graphs")

    def rows(self, first: int, count: int) -> OrtRows:
        raise NotImplementedError("rows of rows")

    def bind_input(self, binding: Any, name: str) -> None:
        binding.bind_input(name, *self._where())

    def bind_output(self, binding: Any, name: str) -> None:
        binding.bind_output(name, *self._where())

    def _where(self) -> tuple[Any, ...]:
        """Device, its number, type, shape and address, as an IOBinding takes them."""
        return self.value.device_name(), 0, self.value.element_type(), list(self._shape), self._address


class OrtStep:
    """An IOBinding."""

    def __init__(self, engine: OrtEngine, inputs: Mapping[str, Value], outputs: Mapping[str, DeviceTensor]) -> None:
        self._engine = engine
        self._session = engine.session
        self._device = engine.device
        self._binding = self._session.io_binding()
        self._inputs: dict[str, OrtTensor] = {}
        self._outputs = {name: tensor for name, tensor in outputs.items() if isinstance(tensor, OrtTensor)}
        try:
            for name, value in inputs.items():
                tensor = value if isinstance(value, OrtTensor) else engine.upload(np.asarray(value))
                self._inputs[name] = tensor
                tensor.bind_input(self._binding, name)
            for name, tensor in self._outputs.items():
                tensor.bind_output(self._binding, name)
        except Exception as error:  # ONNX Runtime's exceptions have no common base class
            raise engine.failure(error) from error
        self._free = [name for name in engine.output_names if name not in self._outputs]

    def update(self, name: str, value: np.ndarray[Any, Any]) -> None:
        self._inputs[name].write(value)

    def run(self) -> dict[str, DeviceTensor]:
        try:
            for name in self._free:
                self._binding.bind_output(name, self._device)
            self._session.run_with_iobinding(self._binding)
        except Exception as error:
            raise self._engine.failure(error) from error
        result: dict[str, DeviceTensor] = dict(self._outputs)
        if self._free:
            # Bound outputs come back in the order of binding; the free ones were bound last.
            values = self._binding.get_outputs()[-len(self._free) :]
            result.update((name, OrtTensor(value)) for name, value in zip(self._free, values))
        return result


class OrtEngine:
    """One InferenceSession.

    Args:
        graph: its name, for messages.
    """

    only_profiles = False

    def __init__(self, session: Any, device: str, graph: str = "graph") -> None:
        self.session = session
        self.device = device
        self.graph = graph
        self.output_names = [output.name for output in session.get_outputs()]

    def failure(self, error: Exception) -> GraphError:
        """The message for an error of ONNX Runtime's."""
        return GraphError(self.graph, f"ONNX Runtime can't run it ({first_line(error)})")

    def zeros(self, shape: tuple[int, ...], dtype: str) -> DeviceTensor:
        try:
            return self.upload(np.zeros(shape, dtype))
        except Exception as error:  # memory that is not there, on the host or the device
            raise self.failure(error) from error

    def copy_rows(
        self,
        source: DeviceTensor,
        rows: np.ndarray[Any, Any],
        target: DeviceTensor,
        target_rows: np.ndarray[Any, Any],
        length: int,
    ) -> None:
        assert type(source) is OrtTensor and type(target) is OrtTensor  # the value of rows is the whole
        read, written = source.value, target.value
        if self.device == "cpu":
            copy_host_rows(source, rows, target, target_rows, length)
            return
        from catp.runtime.providers.cuda import copy_rectangles, wait_for_default_stream

        itemsize = read.tensor_size_in_bytes() // max(1, math.prod(source.shape))
        copies = row_copies(source.shape, target.shape, itemsize, rows, target_rows, length)
        # A run returns when its stream is done, so the default stream needs no other order than its own.
        copy_rectangles(read.data_ptr(), written.data_ptr(), copies)
        wait_for_default_stream()

    def cache_slots(self, needed: int) -> int:
        return -(-needed // CACHE_ROUNDING) * CACHE_ROUNDING

    def upload(self, array: np.ndarray[Any, Any]) -> OrtTensor:
        array = np.ascontiguousarray(array)
        if array.dtype != bfloat16:
            if self.device == "cpu":
                return host_tensor(array)
            return OrtTensor(ort.OrtValue.ortvalue_from_numpy(array, self.device, 0))
        # ONNX Runtime has the type, and takes no array of it: the bits are copied.
        value = ort.OrtValue.ortvalue_from_shape_and_type(array.shape, _BFLOAT16, self.device)
        value.update_inplace(array.view(np.uint16))
        return OrtTensor(value)

    def bind(self, inputs: Mapping[str, Value], outputs: Mapping[str, DeviceTensor] | None = None) -> OrtStep:
        return OrtStep(self, inputs, outputs or {})


def host_tensor(array: np.ndarray[Any, Any]) -> OrtTensor:
    """The array as a tensor on the CPU, contiguous, of any type but bfloat16: its own memory, not a copy of it."""
    return OrtTensor(ort.OrtValue.ortvalue_from_numpy(array, "cpu", 0), array)


def copy_host_rows(
    source: OrtTensor,
    rows: np.ndarray[Any, Any],
    target: OrtTensor,
    target_rows: np.ndarray[Any, Any],
    length: int,
) -> None:
    """As `Engine.copy_rows`, for tensors on the CPU."""
    view, target_view = _host_memory(source.value), _host_memory(target.value)
    for row, target_row in zip(rows.tolist(), target_rows.tolist()):
        target_view[target_row, ..., :length, :] = view[row, ..., :length, :]


def _host_memory(value: Any) -> np.ndarray[Any, Any]:
    """The bytes of an OrtValue on the CPU, uint8 [B, ..., M, d * itemsize]: its memory, not a copy of it."""
    content = (ctypes.c_byte * value.tensor_size_in_bytes()).from_address(value.data_ptr())
    return np.frombuffer(content, np.uint8).reshape(*value.shape()[:-1], -1)


def first_line(error: Exception) -> str:
    """The first line of an exception's text."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _check_tensors(session: Any, bundle: Bundle, graph: str) -> None:
    """Raises BundleError where the manifest and the graph disagree on a name, a dtype or a shape."""
    spec = bundle.manifest.graphs[graph]
    for actual, listed in ((session.get_inputs(), spec.inputs), (session.get_outputs(), spec.outputs)):
        found = [(tensor.name, _DTYPES.get(tensor.type), tuple(tensor.shape)) for tensor in actual]
        if found != [(tensor.name, tensor.dtype, tensor.shape) for tensor in listed]:
            raise BundleError(f"bundle {bundle.path}: its manifest describes other tensors than {spec.file.path} has")


class OrtProvider:
    """Opens graphs with one of ONNX Runtime's execution providers.

    Args:
        mapped: leave weights as they lie in their files, which are mapped: the system may drop and read them again, so
            that graphs may be larger than memory. They are slower, as no kernel gets its weights packed.

    Raises:
        UsageError: ONNX Runtime is not installed, this build of it does not have the execution provider, or there are
            more threads than these cores could run.
    """

    def __init__(self, name: str, threads: int | None = None, verbose: bool = False, mapped: bool = False) -> None:
        self.name = name
        self._threads = threads
        self._mapped = mapped
        self._verbose = verbose
        self._execution_providers = _EXECUTION_PROVIDERS[name]
        install = f"install this project's extra: pip install '.[{_EXTRAS[name]}]'"
        if ort is None:
            raise UsageError(f"provider {name}: ONNX Runtime {_MISSING}; {install}")
        most = THREADS_PER_CORE * (os.cpu_count() or 1)
        if threads is not None and not 0 <= threads <= most:
            raise UsageError(f"threads {threads}: this machine has {os.cpu_count()} cores; give at most {most}")
        if self._execution_providers[0] not in ort.get_available_providers():
            raise UsageError(
                f"provider {name}: this ONNX Runtime has no {self._execution_providers[0]}; "
                f"uninstall onnxruntime, then {install}"
            )

    def synchronize(self) -> None:
        """Nothing to wait for: a run returns when it is done."""

    def moment(self) -> HostMoment:
        return HostMoment()

    def engine(self, bundle: Bundle, graph: str) -> OrtEngine:
        """Load one graph of a bundle.

        Raises:
            UsageError: the execution provider can't start, or can't compute in the bundle's precision.
            BundleError: ONNX Runtime can't load the graph, or the graph is not what the manifest says.
        """
        if self.name == "cpu" and bundle.manifest.precision == "bf16":
            raise UsageError(
                f"provider cpu: bundle {bundle.path} is in bf16, which ONNX Runtime can't compute on a CPU; "
                "accepted: cuda, tensorrt, tensorrt-rtx; "
                "give one of them with --provider, or export with --precision fp32 or fp16"
            )
        quantization = bundle.manifest.graphs[graph].quantization
        purpose = quantization.purpose if quantization else None
        if purpose == "cpu" and self.name != "cpu":
            raise UsageError(
                f"provider {self.name}: {graph} was quantised for ONNX Runtime on a CPU; use --provider cpu, or "
                "catp-calibrate precision --for tensorrt and catp-build"
            )
        path = bundle.graph_file(graph)
        try:
            session = self._session(str(path), self._options(purpose), purpose)
        except Exception as error:  # ONNX Runtime's exceptions have no common base class
            raise BundleError(
                f"bundle {bundle.path}: ONNX Runtime can't load {path.name}: {first_line(error)}"
            ) from error
        if session.get_providers()[0] != self._execution_providers[0]:
            # It falls back silently where CUDA, cuDNN or TensorRT libraries are missing; a benchmark must not.
            raise UsageError(
                f"provider {self.name}: {self._execution_providers[0]} could not start (are the CUDA, cuDNN and "
                "TensorRT libraries of this ONNX Runtime installed?); use --provider cpu to run on the CPU"
            )
        _check_tensors(session, bundle, graph)
        return OrtEngine(session, _DEVICES[self.name], graph)

    def engine_in_memory(
        self, model: bytes, folder: Path, purpose: Purpose | None = None, in_order: bool = False
    ) -> OrtEngine:
        """A model that no bundle holds, whose external weights lie in `folder`.

        Args:
            in_order: run nodes in the order of the model: what is computed beside its outputs is else left for the end,
                and all that it reads stays in memory until then.
        """
        options = self._options(purpose)
        if in_order:
            options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        return OrtEngine(self._session(model, options, purpose), _DEVICES[self.name])

    def _session(self, model: str | bytes, options: Any, purpose: Purpose | None) -> Any:
        # It takes a zero point of 0 for the lowest number there is, also of FP8, and drops the Relu before it.
        wrong = ["ReluQuantRewrite"]
        if self.name == "cpu":
            # On a CPU its operator takes several times as long as the Add and LayerNormalization that it stands for.
            wrong.append("SkipLayerNormFusion")
        if purpose == "cpu":
            wrong.append("MatMulAddFusion")  # it makes a float Gemm of a product that an integer kernel could do
        return ort.InferenceSession(model, options, providers=self._execution_providers, disabled_optimizers=wrong)

    def _options(self, purpose: Purpose | None) -> Any:
        # No optimised graph is kept for the next load: alone it saves a tenth of a second, and with packed weights,
        # which would be mapped instead of copied, ONNX Runtime 1.31 loads INT4 products that give other numbers.
        options = ort.SessionOptions()
        # Its errors come back as exceptions, which say the same in one line; so nothing is logged but what ends it.
        options.log_severity_level = 1 if self._verbose else 4
        # Threads that wait for a graph's next call take the cores from the graph that runs: three graphs take turns.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if purpose == "tensorrt":
            # A simulation: rounded as TensorRT rounds, multiplied in floating point. ONNX Runtime's own fusions of
            # such pairs make int8 times int8 of them, which is slow here, and a graph that it refuses of FP8.
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        if self._mapped:
            options.add_session_config_entry("session.disable_prepacking", "1")
        if self._threads:
            options.intra_op_num_threads = self._threads
        return options
