"""TensorRT and TensorRT-RTX as providers: plans on one CUDA device, chained on one stream, without torch."""

from __future__ import annotations

import importlib
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np

from catp.runtime.bundle.engine_sets import EngineSet, choose_set
from catp.runtime.bundle.folder import Bundle
from catp.runtime.bundle.plans import MODULES, REBUILD, REPEATED, PlanSpec, fixed_numbers
from catp.runtime.errors import BundleError, CatpError, UsageError
from catp.runtime.providers.base import DeviceTensor, Value
from catp.runtime.providers.cuda import Allocation, CapturedGraph, Device, Event
from catp.runtime.providers.launch import Launch, plan_launch, shared_addresses
from catp.runtime.providers.row_copies import row_copies

_EXTRAS = {"tensorrt": "tensorrt", "tensorrt-rtx": "rtx"}


class TrtTensor:
    """A tensor in device memory.

    Args:
        memory: where it lies, `offset` bytes from its beginning; None: memory of its own.
    """

    def __init__(
        self, device: Device, shape: tuple[int, ...], dtype: str, memory: Allocation | None = None, offset: int = 0
    ) -> None:
        self.device = device
        self._shape = shape
        self.dtype = np.dtype(dtype)
        self.memory: Allocation = memory or device.allocate(self.nbytes)
        self._offset = offset

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    @property
    def nbytes(self) -> int:
        return int(np.prod(self._shape)) * self.dtype.itemsize

    @property
    def address(self) -> int:
        return self.memory.address + self._offset

    def rows(self, first: int, count: int) -> TrtTensor:
        rows, *others = self._shape
        if not 0 <= first < first + count <= rows:
            raise ValueError(f"rows {first} to {first + count} of {rows}")
        offset = self._offset + first * (self.nbytes // rows)
        return TrtTensor(self.device, (count, *others), str(self.dtype), self.memory, offset)

    def numpy(self) -> np.ndarray[Any, Any]:
        return self.device.download(self.address, self._shape, self.dtype)


class TrtStep:
    """One way to call a plan, bound to memory.

    The first run queues every kernel. Of steps that repeat, TensorRT's second run records them as a CUDA graph, and
    from then on one launch replays it; TensorRT-RTX captures by itself (`_Context`).
    """

    def __init__(
        self,
        context: _Context,
        launch: Launch,
        device_inputs: dict[str, TrtTensor],
        outputs: dict[str, TrtTensor],
    ) -> None:
        self._context = context
        self.launch = launch
        self._inputs = device_inputs
        self._outputs = outputs
        # Shape tensors are read from host memory whenever the step is queued.
        self.host_values = {name: np.array(value, np.int64) for name, value in launch.values.items()}
        self._runs = 0
        self._graph: CapturedGraph | None = None

    @property
    def addresses(self) -> dict[str, int]:
        """Memory of every tensor by name."""
        return {
            **{name: tensor.address for name, tensor in (*self._inputs.items(), *self._outputs.items())},
            **{name: value.ctypes.data for name, value in self.host_values.items()},
        }

    def update(self, name: str, value: np.ndarray[Any, Any]) -> None:
        tensor = self._inputs[name]
        tensor.device.upload(tensor.address, np.ascontiguousarray(value, tensor.dtype).reshape(tensor.shape))

    def run(self) -> dict[str, DeviceTensor]:
        if self._context.apply(self):
            self._runs, self._graph = 0, None  # other addresses were in force meanwhile: what was recorded is void
        if self._graph is not None:
            self._graph.launch()
        elif self._runs == 1 and self._context.records:
            self._graph = self._context.record()
        else:
            self._context.queue()
        self._runs += 1
        return dict(self._outputs)


class _Context:
    """An execution context for one profile, and the step it is set up for.

    Args:
        repeats: steps of this profile run many times unchanged: worth a CUDA graph.
    """

    def __init__(self, trt: Any, engine: Any, device: Device, profile: int, graph: str, repeats: bool) -> None:
        self._device = device
        self._graph = graph
        self.records = False
        if not hasattr(trt, "CudaGraphStrategy"):
            self._context = engine.create_execution_context()
            self.records = repeats
        else:
            # TensorRT-RTX compiles kernels for a shape while it runs, and knows best when a capture is worth it:
            # https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/work-with-cuda-graphs.html
            config = engine.create_runtime_config()
            if repeats:
                config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            self._context = engine.create_execution_context(config)
        if self._context is None:
            raise CatpError(f"{graph}: no execution context could be made (too little device memory?)")
        self._require(self._context.set_optimization_profile_async(profile, device.stream_handle), "its profile")
        self._host_values: dict[str, np.ndarray[Any, Any]] = {}
        self._owner: weakref.ref[TrtStep] | None = None  # weak: a finished batch's cache must not wait for the next

    def apply(self, step: TrtStep) -> bool:
        """Set shapes and addresses of a step; whether another step was set up before."""
        if self._owner is not None and self._owner() is step:
            return False
        self._owner = None  # whatever fails below, nothing is set up
        for name, shape in step.launch.inputs.items():
            self._require(self._context.set_input_shape(name, shape), f"shape {shape} of {name}")
        for name, address in step.addresses.items():
            self._require(self._context.set_tensor_address(name, address), f"an address of {name}")
        try:
            missing = self._context.infer_shapes()
        except RuntimeError as error:
            raise CatpError(f"{self._graph}: TensorRT can't infer shapes: {error}") from None
        self._require(not missing, f"a call without {', '.join(missing)}")
        for name, shape in step.launch.outputs.items():
            actual = tuple(self._context.get_tensor_shape(name))
            self._require(actual == shape, f"{name} as {shape}: the plan makes {actual}")
        self._owner = weakref.ref(step)
        self._host_values = step.host_values  # may be read as long as work is queued
        return True

    def queue(self) -> None:
        self._require(self._context.execute_async_v3(self._device.stream_handle), "to run")

    def record(self) -> CapturedGraph | None:
        """Run once more, as a CUDA graph where the plan can be captured."""
        self._device.begin_capture()
        queued = self._context.execute_async_v3(self._device.stream_handle)
        graph = self._device.end_capture()
        if not queued or graph is None:
            self.records = False
            self.queue()
            return None
        graph.launch()
        return graph

    def _require(self, accepted: bool, what: str) -> None:
        if not accepted:
            raise CatpError(f"{self._graph}: TensorRT refused {what}")


class TrtEngine:
    """One plan, loaded on the device."""

    only_profiles = True

    def __init__(self, trt: Any, engine: Any, spec: PlanSpec, device: Device) -> None:
        self._trt = trt
        self._engine = engine
        self.spec = spec
        self._device = device
        self._contexts: dict[int, _Context] = {}
        self._dtypes = {tensor.name: tensor.dtype for tensor in (*spec.inputs, *spec.outputs)}

    def zeros(self, shape: tuple[int, ...], dtype: str) -> TrtTensor:
        tensor = TrtTensor(self._device, shape, dtype)
        self._device.zero(tensor.memory, tensor.nbytes)
        return tensor

    def copy_rows(
        self,
        source: DeviceTensor,
        rows: np.ndarray[Any, Any],
        target: DeviceTensor,
        target_rows: np.ndarray[Any, Any],
        length: int,
    ) -> None:
        assert isinstance(source, TrtTensor) and isinstance(target, TrtTensor)
        copies = row_copies(source.shape, target.shape, source.dtype.itemsize, rows, target_rows, length)
        self._device.copy_rows(source.address, target.address, copies)

    def cache_slots(self, needed: int) -> int:
        built = self.spec.request.fixed["max_length"]
        if needed > built:
            raise UsageError(
                f"{needed} cache slots are needed (image tokens kept, prompt and answer), and these engines have "
                f"{built}; give a shorter prompt or fewer new tokens, or build with --max-length {needed}"
            )
        return built

    def bind(self, inputs: Mapping[str, Value], outputs: Mapping[str, DeviceTensor] | None = None) -> TrtStep:
        """Choose profile and memory; raises UsageError where the call is larger than the plan was built for."""
        values = {
            name: tuple(int(number) for number in np.asarray(value).ravel())
            for name, value in inputs.items()
            if isinstance(value, np.ndarray) and self._on_host(name)
        }
        shapes = {name: tuple(value.shape) for name, value in inputs.items() if name not in values}
        launch = plan_launch(self.spec, shapes, values)
        tensors = {name: self._on_device(name, inputs[name]) for name in shapes}
        bound = {name: tensor for name, tensor in (outputs or {}).items() if isinstance(tensor, TrtTensor)}
        shared_addresses(
            self.spec,
            {name: tensor.address for name, tensor in tensors.items()},
            {name: tensor.address for name, tensor in bound.items()},
        )
        for name, shape in launch.outputs.items():
            if name not in bound:
                source = self.spec.aliases.get(name)
                bound[name] = tensors[source] if source else TrtTensor(self._device, shape, self._dtypes[name])
        return TrtStep(self._context(launch.profile), launch, tensors, bound)

    def _on_host(self, name: str) -> bool:
        request = self.spec.request
        return bool(fixed_numbers(name, request.fixed)) or any(name in profile.values for profile in request.profiles)

    def _on_device(self, name: str, value: Value) -> TrtTensor:
        if isinstance(value, TrtTensor):
            return value
        array = np.ascontiguousarray(np.asarray(value), self._dtypes[name])
        tensor = TrtTensor(self._device, array.shape, self._dtypes[name])
        self._device.upload(tensor.address, array)
        return tensor

    def _context(self, profile: int) -> _Context:
        if profile not in self._contexts:
            repeats = self.spec.request.profiles[profile].name == REPEATED
            self._contexts[profile] = _Context(self._trt, self._engine, self._device, profile, self.spec.graph, repeats)
        return self._contexts[profile]


class TensorRTProvider:
    """Opens the plans that catp-build wrote into a bundle.

    Args:
        name: "tensorrt" or "tensorrt-rtx".
        engines: the engine set's name; None: the one built last among those that fit this device and library.

    Raises:
        UsageError: the library, cuda-python or a CUDA device is missing.
    """

    def __init__(self, name: str, engines: str | None = None) -> None:
        self.name = name
        self._key = engines
        install = f"pip install '.[{_EXTRAS[name]}]'"
        try:
            self._trt = importlib.import_module(MODULES[name])
        except ImportError as error:
            raise UsageError(f"provider {name}: {MODULES[name]} can't be loaded ({error}); {install}") from None
        try:
            self._device = Device()
        except UsageError as error:
            raise UsageError(f"provider {name}: {error}") from None
        self._logger = self._trt.Logger(self._trt.Logger.ERROR)
        self._runtime = self._trt.Runtime(self._logger)
        self._sets: dict[str, EngineSet] = {}

    def synchronize(self) -> None:
        self._device.synchronize()

    def moment(self) -> Event:
        return self._device.record_event()

    def engine(self, bundle: Bundle, graph: str) -> TrtEngine:
        """Load one plan, after checking that it belongs to this bundle, library and device.

        Raises:
            UsageError: no engine set fits; the message says how to build one.
            BundleError: a plan or sidecar was altered, or TensorRT can't load it.
        """
        where = str(bundle.path)
        if where not in self._sets:
            version, capability = self._trt.__version__, self._device.compute_capability
            self._sets[where] = choose_set(bundle, self.name, version, capability, self._key)
        chosen = self._sets[where]
        path = chosen.plan(graph)
        engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise BundleError(f"{path}: {self.name} {self._trt.__version__} can't load it; {REBUILD}")
        return TrtEngine(self._trt, engine, chosen.plans[graph], self._device)
