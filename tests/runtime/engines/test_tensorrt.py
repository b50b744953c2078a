"""The TensorRT provider without a GPU: what it refuses, and the order in which a step talks to its context.

Nothing here runs a plan. The context below only writes down what it is asked to do.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plans import language_model

from catp.runtime import Pipeline, UsageError
from catp.runtime.engines import cuda, open_provider
from catp.runtime.engines.launch import Launch
from catp.runtime.engines.tensorrt import TrtEngine, TrtStep

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
