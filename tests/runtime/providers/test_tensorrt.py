"""The TensorRT provider without a GPU: what it refuses, and the order in which a step talks to its context.

Nothing here runs a plan. The context below only writes down what it is asked to do.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from written_plans import language_model

from catp.runtime import CatpError, Pipeline, UsageError
from catp.runtime.providers import cuda, open_provider
from catp.runtime.providers.launch import Launch
from catp.runtime.providers.row_copies import RowCopies
from catp.runtime.providers.tensorrt import TrtEngine, TrtStep, TrtTensor, _Context

needs_no_gpu = pytest.mark.skipif(cuda.compute_capability() is not None, reason="there is a GPU")


class Notes:
    """Stands where `_Context` stands, and notes the calls."""

    def __init__(self, can_record: bool = True) -> None:
        self.records = can_record
        self.calls: list[str] = []
        self._owner: Any = None

    def apply(self, step: TrtStep) -> bool:
        changed = self._owner is not step
        self._owner = step
        if changed:
            self.calls.append("apply")
        return changed

    def queue(self) -> None:
        self.calls.append("queue")

    def record(self) -> Any:
        self.calls.append("record")
        return type("Graph", (), {"launch": lambda _: self.calls.append("launch")})()


def step(context: Any) -> TrtStep:
    return TrtStep(context, Launch(0, {}, {"num_kept": (8,)}, {}), {}, {})


def test_a_step_is_queued_then_recorded_then_launched() -> None:
    context = Notes()
    decode = step(context)
    for _ in range(4):
        decode.run()
    assert context.calls == ["apply", "queue", "record", "launch", "launch"]


def test_a_recording_is_void_once_another_step_used_the_context() -> None:
    context = Notes()
    first, second = step(context), step(context)
    for _ in range(3):
        first.run()
    second.run()
    first.run()
    assert context.calls == ["apply", "queue", "record", "launch", "apply", "queue", "apply", "queue"]


def test_a_context_that_records_by_itself_is_only_queued() -> None:
    context = Notes(can_record=False)
    decode = step(context)
    for _ in range(3):
        decode.run()
    assert context.calls == ["apply", "queue", "queue", "queue"]


def test_rows_are_copied_from_address_to_address() -> None:
    """Nothing is asked of the device but copies within its memory."""
    copies: list[tuple[Any, ...]] = []
    addresses = iter((1000, 2000))
    device: Any = SimpleNamespace(
        allocate=lambda size: SimpleNamespace(address=next(addresses)), copy_rows=lambda *call: copies.append(call)
    )
    engine = TrtEngine(None, None, SimpleNamespace(inputs=(), outputs=()), device)  # type: ignore[arg-type]
    source, target = (TrtTensor(device, (rows, 2, slots, 4), "float16") for rows, slots in ((1, 8), (3, 16)))
    engine.copy_rows(source, np.array([0, 0]), target, np.array([0, 2]), 5)
    row = 2 * 16 * 4 * 2  # bytes
    rectangles = RowCopies(width=40, height=2, source_pitch=64, target_pitch=128, offsets=[(0, 0), (0, 2 * row)])
    assert copies == [(1000, 2000, rectangles)]


def test_rows_are_addresses_in_the_same_memory() -> None:
    device: Any = SimpleNamespace(allocate=lambda size: SimpleNamespace(address=4096))
    whole = TrtTensor(device, (8, 2, 32, 4), "float16")
    row = 2 * 32 * 4 * 2  # bytes
    part = whole.rows(3, 2)
    assert (part.shape, part.address, part.dtype) == ((2, 2, 32, 4), 4096 + 3 * row, whole.dtype)
    assert part.memory is whole.memory  # which lives as long as either does
    assert part.rows(1, 1).address == 4096 + 4 * row
    with pytest.raises(ValueError, match="of 8"):
        whole.rows(7, 2)


class Recorder:
    """Stands where TensorRT's engine and execution context stand; runs nothing, writes down every call."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], refuses: str = "") -> None:
        self.calls: list[tuple[Any, ...]] = []
        self._shapes = shapes
        self._refuses = refuses

    def create_execution_context(self) -> "Recorder":
        return self

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def infer_shapes(self) -> list[str]:
        self.calls.append(("infer_shapes",))
        return []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> bool:
            self.calls.append((name, *arguments))
            return name != self._refuses

        return call


def bound_step(recorder: Recorder, repeats: bool = True) -> tuple[_Context, TrtStep]:
    stream = SimpleNamespace(stream_handle=7)
    context = _Context(SimpleNamespace(), recorder, stream, 1, "language_model", repeats)  # type: ignore[arg-type]
    cache, logits = SimpleNamespace(address=4096), SimpleNamespace(address=8192)
    launch = Launch(1, {"past": (1, 4)}, {"num_kept": (8,)}, {"present": (1, 4), "logits": (1, 9)})
    return context, TrtStep(context, launch, {"past": cache}, {"present": cache, "logits": logits})  # type: ignore[dict-item]


def test_profile_then_shapes_then_addresses_then_inference_then_the_queue() -> None:
    recorder = Recorder({"present": (1, 4), "logits": (1, 9)})
    context, decode = bound_step(recorder)
    assert context.records
    decode.run()
    host = decode.host_values["num_kept"].ctypes.data
    assert recorder.calls == [
        ("set_optimization_profile_async", 1, 7),
        ("set_input_shape", "past", (1, 4)),
        ("set_tensor_address", "past", 4096),
        ("set_tensor_address", "present", 4096),  # the cache is written where it is read
        ("set_tensor_address", "logits", 8192),
        ("set_tensor_address", "num_kept", host),
        ("infer_shapes",),
        ("execute_async_v3", 7),
    ]
    assert not bound_step(Recorder({}), repeats=False)[0].records


def test_a_plan_of_other_shapes_is_refused_and_nothing_stays_set_up() -> None:
    recorder = Recorder({"present": (1, 4), "logits": (1, 10)})
    context, decode = bound_step(recorder)
    with pytest.raises(CatpError, match=r"refused logits as \(1, 9\): the plan makes \(1, 10\)"):
        decode.run()
    assert context._owner is None
    _, refused = bound_step(Recorder({"present": (1, 4), "logits": (1, 9)}, refuses="execute_async_v3"))
    with pytest.raises(CatpError, match="TensorRT refused to run"):
        refused.run()


def test_shape_tensors_are_read_from_host_memory() -> None:
    bound = step(Notes())
    (value,) = bound.host_values.values()
    assert value.tolist() == [8] and value.dtype == np.int64
    assert bound.addresses == {"num_kept": value.ctypes.data}


def test_the_cache_has_the_length_that_was_built() -> None:
    engine = TrtEngine(None, None, language_model(), None)  # type: ignore[arg-type]
    assert engine.cache_slots(40) == engine.cache_slots(128) == 128
    with pytest.raises(UsageError, match=r"129 cache slots are needed .* build with --max-length 129"):
        engine.cache_slots(129)


class HostDevice:
    """Stands where the CUDA device stands, with host memory."""

    def __init__(self) -> None:
        self.memory: dict[int, np.ndarray] = {}

    def allocate(self, size: int) -> SimpleNamespace:
        address = 4096 * (len(self.memory) + 1)
        self.memory[address] = np.full(size, 255, np.uint8)
        return SimpleNamespace(address=address)

    def zero(self, allocation: SimpleNamespace, size: int) -> None:
        self.memory[allocation.address][:size] = 0

    def upload(self, address: int, array: np.ndarray) -> None:
        self.memory[address][:] = array.reshape(-1).view(np.uint8)

    def download(self, address: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        return self.memory[address].view(dtype).reshape(shape)


def test_bfloat16_tensors_have_two_bytes_a_value() -> None:
    device = HostDevice()
    cache = TrtEngine(None, None, language_model(), device).zeros((2, 3), "bfloat16")  # type: ignore[arg-type]
    assert cache.nbytes == 12 and cache.numpy().astype(np.float32).tolist() == [[0] * 3] * 2
    step = TrtStep(Notes(), Launch(0, {}, {}, {}), {"past": cache}, {})  # type: ignore[arg-type]
    step.update("past", np.arange(6, dtype=np.float32))
    assert cache.numpy().astype(np.float32).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert device.memory[cache.address].view(np.uint16)[1] == 0x3F80


@needs_no_gpu
@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_without_a_gpu_it_says_what_is_missing(name: str, demo_bundle: Path) -> None:
    with pytest.raises(UsageError, match=f"provider {name}: ") as caught:
        Pipeline.load(demo_bundle, provider=name)
    assert "pip install" in str(caught.value) or "no CUDA device was found" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_engines_are_for_providers_that_run_them() -> None:
    with pytest.raises(UsageError, match="provider cpu runs the ONNX graphs"):
        open_provider("cpu", engines="some-set")


@needs_no_gpu
def test_there_is_no_capability_without_a_gpu() -> None:
    assert cuda.compute_capability() is None
    with pytest.raises(UsageError, match=r"no CUDA device was found|cuda-python is not installed"):
        cuda.Device()
