"""Half-precision bundles run by ONNX Runtime on the CPU as by a GPU: rounded, refused where a result overflows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from catp.export.verification.emulation import HALF, SUMS, WIDER, Watched, emulate
from catp.runtime.bundle.folder import Bundle
from catp.runtime.bundle.manifest import GraphSpec, TensorSpec
from catp.runtime.errors import ParityError
from catp.runtime.providers.base import DeviceTensor, Engine, HostMoment, Provider, Step, Value
from catp.runtime.providers.onnx_runtime import OrtProvider


def emulated(bundle: Bundle) -> tuple[Bundle, Provider]:
    """A float32 bundle that computes what a half-precision one should, and the provider that runs it."""
    manifest = bundle.manifest
    graphs = {name: _in_float32(spec) for name, spec in manifest.graphs.items()}
    return Bundle(bundle.path, manifest.model_copy(update={"precision": "fp32", "graphs": graphs})), _Emulation()


def _in_float32(spec: GraphSpec) -> GraphSpec:
    def widened(tensor: TensorSpec) -> TensorSpec:
        half = tensor.dtype in ("float16", "bfloat16")
        return tensor.model_copy(update={"dtype": "float32"}) if half else tensor

    return spec.model_copy(
        update={
            "precision": "fp32",
            "inputs": tuple(map(widened, spec.inputs)),
            "outputs": tuple(map(widened, spec.outputs)),
        }
    )


class _Emulation:
    """A provider that rewrites graphs as it loads them: nothing is written."""

    name = "cpu"

    def __init__(self) -> None:
        self._provider = OrtProvider("cpu")

    def engine(self, bundle: Bundle, graph: str) -> Engine:
        spec = bundle.manifest.graphs[graph]
        model = onnx.load(bundle.file(spec.file), load_external_data=False)
        watched = emulate(model)
        purpose = spec.quantization.purpose if spec.quantization else None
        engine = self._provider.engine_in_memory(model.SerializeToString(), bundle.path, purpose, in_order=True)
        return _WatchedEngine(engine, graph, watched)

    def synchronize(self) -> None:
        self._provider.synchronize()

    def moment(self) -> HostMoment:
        return self._provider.moment()


class _WatchedEngine:
    def __init__(self, engine: Engine, graph: str, watched: Sequence[Watched]) -> None:
        self._engine, self._graph, self._watched = engine, graph, watched
        self.only_profiles = engine.only_profiles
        self.zeros = engine.zeros
        self.copy_rows = engine.copy_rows
        self.cache_slots = engine.cache_slots

    def bind(self, inputs: Mapping[str, Value], outputs: Mapping[str, DeviceTensor] | None = None) -> Step:
        return _WatchedStep(self._engine.bind(inputs, outputs), self._graph, self._watched)


class _WatchedStep:
    def __init__(self, step: Step, graph: str, watched: Sequence[Watched]) -> None:
        self._step, self._graph, self._watched = step, graph, watched
        self.update = step.update

    def run(self) -> dict[str, DeviceTensor]:
        """Raises ParityError where a result is not finite, named by the first one: others follow from it."""
        outputs = self._step.run()
        if self._watched:
            sums = outputs.pop(SUMS).numpy()
            wrong = np.flatnonzero(~np.isfinite(sums))
            if wrong.size:
                first = self._watched[wrong[0]]
                raise ParityError(
                    f"{self._graph}: {first.describe(float(sums[wrong[0]]))}; nothing was published. "
                    f"Give catp-export --precision {WIDER[HALF[first.kind]]}"
                )
        return outputs
