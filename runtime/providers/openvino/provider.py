"""OpenVINO as a provider, beside ONNX Runtime, which it leaves to what has a KV cache and to what it can't read."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final, Literal

import numpy as np

from catp.runtime.bundle.chains import DECODE_GRAPH, graphs_of
from catp.runtime.bundle.folder import Bundle
from catp.runtime.bundle.manifest import GraphSpec
from catp.runtime.errors import BundleError, GraphError, UsageError
from catp.runtime.limits import CACHE_ROUNDING
from catp.runtime.providers.base import DeviceTensor, Engine, HostMoment, Value, to_host
from catp.runtime.providers.onnx_runtime import OrtProvider, OrtTensor, copy_host_rows, first_line, host_tensor
from catp.runtime.providers.openvino.library import import_openvino, shared_core
from catp.runtime.providers.openvino.signal_stack import signal_stack_kept
from catp.runtime.system.cache import cache_folder
from catp.runtime.system.optional_imports import reason_of

DEVICE_VARIABLE = "CATP_OPENVINO_DEVICE"
PRECISION_VARIABLE = "CATP_OPENVINO_PRECISION"

DEVICES = ("CPU", "GPU", "NPU")
"""Names that OpenVINO has for kinds of devices; a machine with several has GPU.0, GPU.1, ..."""

DEFAULT_PRECISIONS: Final[dict[str, Literal["f32", "f16"]]] = {"CPU": "f32", "GPU": "f16", "NPU": "f16"}
"""Precision by device: on a CPU what the graphs were verified in, elsewhere what the hardware multiplies."""
_CAPABILITIES = {"f32": "FP32", "bf16": "BF16", "f16": "FP16"}
"""Precisions that may be asked for, as OpenVINO lists them among a device's capabilities."""

_COMPILED_SHAPES = 8
"""Batch sizes that stay compiled on a device that takes fixed shapes alone."""

_log = logging.getLogger(__name__)


def open_openvino(name: str) -> Any:
    """The package.

    Raises:
        UsageError: it is not installed, or can't be loaded.
    """
    try:
        return import_openvino()
    except ImportError as error:
        raise UsageError(
            f"provider {name}: OpenVINO {reason_of(error, 'openvino')}; install this project's extra: "
            "pip install '.[cpu,openvino]'"
        ) from None


class OpenVinoStep:
    """A graph with its inputs in host memory."""

    def __init__(self, engine: OpenVinoEngine, inputs: Mapping[str, Value], outputs: Mapping[str, DeviceTensor]):
        self._engine = engine
        # An array of the caller's may change before the next run; a tensor is a graph's own.
        self._inputs = {
            name: np.array(value, order="C") if isinstance(value, np.ndarray) else np.ascontiguousarray(to_host(value))
            for name, value in inputs.items()
        }
        self._outputs = {name: tensor for name, tensor in outputs.items() if isinstance(tensor, OrtTensor)}

    def update(self, name: str, value: np.ndarray[Any, Any]) -> None:
        self._inputs[name][...] = value

    def run(self) -> dict[str, DeviceTensor]:
        found: dict[str, DeviceTensor] = {}
        for name, array in self._engine.infer(self._inputs).items():
            if name in self._outputs:
                self._outputs[name].write(array)
                found[name] = self._outputs[name]
            else:
                found[name] = host_tensor(array)
        return found


class OpenVinoEngine:
    """One graph, compiled for a device.

    Args:
        model: the openvino.Model.
        options: to compile with.
        fixed: the device takes fixed shapes alone: the graph is compiled for each batch size that is asked for.

    Raises:
        RuntimeError: OpenVINO can't compile it.
    """

    only_profiles = False

    def __init__(
        self, model: Any, spec: GraphSpec, graph: str, device: str, options: Mapping[str, Any], fixed: bool = False
    ) -> None:
        self._model = model
        self._spec = spec
        self._graph = graph
        self._device = device
        self._options = dict(options)
        self._fixed = fixed
        self._requests: OrderedDict[int | None, Any] = OrderedDict()
        self._request(1)  # what can't be compiled is found out when it is loaded

    def zeros(self, shape: tuple[int, ...], dtype: str) -> DeviceTensor:
        return host_tensor(np.zeros(shape, dtype))

    def copy_rows(
        self,
        source: DeviceTensor,
        rows: np.ndarray[Any, Any],
        target: DeviceTensor,
        target_rows: np.ndarray[Any, Any],
        length: int,
    ) -> None:
        assert type(source) is OrtTensor and type(target) is OrtTensor
        copy_host_rows(source, rows, target, target_rows, length)

    def cache_slots(self, needed: int) -> int:
        return -(-needed // CACHE_ROUNDING) * CACHE_ROUNDING

    def bind(self, inputs: Mapping[str, Value], outputs: Mapping[str, DeviceTensor] | None = None) -> OpenVinoStep:
        return OpenVinoStep(self, inputs, outputs or {})

    def infer(self, inputs: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        """Outputs by name, in memory of their own.

        Raises:
            GraphError: OpenVINO can't run the graph with these.
        """
        try:
            request = self._request(next(iter(inputs.values())).shape[0])
            request.infer([inputs[tensor.name] for tensor in self._spec.inputs], share_inputs=True)
            return {
                # The request's memory is overwritten by its next call.
                tensor.name: np.array(request.get_output_tensor(number).data)
                for number, tensor in enumerate(self._spec.outputs)
            }
        except (RuntimeError, ValueError) as error:
            raise GraphError(self._graph, f"OpenVINO can't run it ({reason_in(error)})") from error

    def _request(self, batch: int) -> Any:
        key = batch if self._fixed else None
        if key in self._requests:
            self._requests.move_to_end(key)
            return self._requests[key]
        model = self._model
        if self._fixed:
            model = model.clone()
            sizes = {t.name: [batch if isinstance(size, str) else size for size in t.shape] for t in self._spec.inputs}
            model.reshape(sizes)
        with signal_stack_kept():
            request = shared_core().compile_model(model, self._device, self._options).create_infer_request()
        self._requests[key] = request
        if len(self._requests) > _COMPILED_SHAPES:
            self._requests.popitem(last=False)
        if not self._fixed:
            self._model = None  # it is compiled once
        return request


class OpenVinoProvider:
    """Opens graphs with OpenVINO; those with a KV cache, and those that it can't read, with ONNX Runtime on the CPU.

    Args:
        name: "openvino".
        threads: CPU threads within an operator, of either library; None leaves it to them.
        verbose: let ONNX Runtime write its log to standard error.
        device: CPU, GPU, NPU, or one of several, such as GPU.1; None: CATP_OPENVINO_DEVICE, or CPU.
        precision: in which it multiplies: f32, bf16 or f16; None: CATP_OPENVINO_PRECISION, or f32 on a CPU and f16
            elsewhere.

    Raises:
        UsageError: OpenVINO or ONNX Runtime is not installed, this machine has no such device, the device does not
            multiply in that precision, or there are more threads than these cores could run.
    """

    def __init__(
        self,
        name: str,
        threads: int | None = None,
        verbose: bool = False,
        device: str | None = None,
        precision: str | None = None,
    ) -> None:
        self.name = name
        openvino = open_openvino(name)
        self.version = openvino.__version__.partition("-")[0]
        self._ort = OrtProvider("cpu", threads, verbose)
        given = device or os.environ.get(DEVICE_VARIABLE) or "CPU"
        self.device = check_device(name, given)
        wanted = precision or os.environ.get(PRECISION_VARIABLE) or DEFAULT_PRECISIONS[self._kind]
        self.precision = _check_precision(name, self.device, wanted.lower())
        self._options: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",  # one call at a time, with all threads
            "INFERENCE_PRECISION_HINT": self.precision,
        }
        if self._kind == "CPU":
            self._options["INFERENCE_NUM_THREADS"] = threads or 0
        else:
            self._options["CACHE_DIR"] = str(cache_folder("openvino"))  # compiling takes seconds to minutes there

    @property
    def _kind(self) -> str:
        return self.device.partition(".")[0]

    def synchronize(self) -> None:
        """Nothing to wait for: a run returns when it is done."""

    def moment(self) -> HostMoment:
        return HostMoment()

    def engine(self, bundle: Bundle, graph: str) -> Engine:
        """Load one graph of a bundle.

        Raises:
            UsageError: the bundle is in bf16.
            BundleError: neither library can load the graph, or the graph is not what the manifest says.
        """
        manifest = bundle.manifest
        if manifest.precision == "bf16":
            raise UsageError(
                f"provider {self.name}: bundle {bundle.path} is in bf16, in which ONNX Runtime can't compute what has "
                f"a KV cache on a CPU; export with --precision fp32, and set {PRECISION_VARIABLE}=bf16 to multiply in "
                "bf16 all the same"
            )
        if has_cache(graph):
            return self._ort.engine(bundle, graph)
        reason = self._left_alone(manifest.graphs[graph])
        if reason is None:
            try:
                return self._compiled(bundle, graph)
            except (RuntimeError, ValueError) as error:
                reason = f"OpenVINO {self.version} can't compile it for {self.device} ({reason_in(error)})"
        engine = self._ort.engine(bundle, graph)
        _log.warning("provider %s: ONNX Runtime runs %s on the CPU: %s", self.name, graph, reason)
        return engine

    def _left_alone(self, spec: GraphSpec) -> str | None:
        """Why a graph stays with ONNX Runtime; None where OpenVINO may try it."""
        if spec.quantization is not None:
            made = "for ONNX Runtime's kernels" if spec.quantization.purpose == "cpu" else "for TensorRT"
            return f"it was quantised to {spec.quantization.format} {made}"
        free = {size for tensor in (*spec.inputs, *spec.outputs) for size in tensor.shape if isinstance(size, str)}
        if self._kind == "NPU" and (len(free) > 1 or any(isinstance(s, str) for t in spec.inputs for s in t.shape[1:])):
            return "an NPU takes fixed shapes, and more than its batch is free"
        return None

    def _compiled(self, bundle: Bundle, graph: str) -> OpenVinoEngine:
        path = bundle.graph_file(graph)
        model = shared_core().read_model(str(path))
        spec = bundle.manifest.graphs[graph]
        for ports, listed in ((model.inputs, spec.inputs), (model.outputs, spec.outputs)):
            if len(ports) != len(listed) or any(not _is_port(p, t.name, t.dtype) for p, t in zip(ports, listed)):
                raise BundleError(f"bundle {bundle.path}: its manifest describes other tensors than {path.name} has")
        return OpenVinoEngine(model, spec, graph, self.device, self._options, fixed=self._kind == "NPU")


def has_cache(graph: str) -> bool:
    """Whether a graph takes decode steps: those stay with ONNX Runtime, which writes the KV cache in place."""
    return graph == DECODE_GRAPH or graph in graphs_of("decode")


def available_devices() -> list[str]:
    """Devices of this machine that OpenVINO has drivers for: CPU, GPU or GPU.0 and GPU.1, NPU.

    Raises:
        ImportError: OpenVINO is not installed.
    """
    return [device for device in shared_core().available_devices if device.partition(".")[0] in DEVICES]


def check_device(name: str, given: str) -> str:
    """A device as OpenVINO calls it; raises UsageError where this machine has none of that name.

    Args:
        name: of the provider, for the message.
    """
    device = given.upper()
    found = available_devices()
    kinds = {found_device.partition(".")[0] for found_device in found}
    if device in DEVICES and device not in found and device in kinds:
        return device  # the first of several
    if device not in found:
        raise UsageError(
            f"provider {name}: device {given[:50]!r}: OpenVINO finds {', '.join(found) or 'none'} on this machine "
            f"(a GPU or an NPU needs its driver); set {DEVICE_VARIABLE} to one of them"
        )
    return device


def _check_precision(name: str, device: str, precision: str) -> str:
    """Raises UsageError where a device does not multiply in a precision: OpenVINO would take another without a word."""
    found = shared_core().get_property(device, "OPTIMIZATION_CAPABILITIES")
    default = DEFAULT_PRECISIONS[device.partition(".")[0]]
    can = [own for own, theirs in _CAPABILITIES.items() if theirs in found or own == default]
    if precision not in can:
        raise UsageError(
            f"provider {name}: precision {precision[:50]!r}: OpenVINO's {device} multiplies in {', '.join(can)} "
            f"on this machine; set {PRECISION_VARIABLE} to one of them"
        )
    return precision


def _is_port(port: Any, name: str, dtype: str) -> bool:
    return name in port.get_names() and np.dtype(port.get_element_type().to_dtype()) == np.dtype(dtype)


def reason_in(error: Exception) -> str:
    """The line of an exception of OpenVINO's that says what is wrong, behind those that say where it was thrown."""
    lines = [line.strip(" -") for line in str(error).splitlines()]
    places = ("Exception from", "Check '", "Summary", "FrontEnd")
    said = [line for line in lines if line and not line.startswith(places)]
    return (said[-1] if said else first_line(error))[:300]
