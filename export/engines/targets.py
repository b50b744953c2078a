"""Targets of plans: TensorRT and TensorRT-RTX, one Python API under two module names."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import onnx

from catp.runtime.bundle.plans import MODULES, Target
from catp.runtime.errors import UsageError
from catp.runtime.providers.cuda import compute_capability

_INSTALL = {
    "tensorrt": "pip install '.[tensorrt,build]' (it comes from NVIDIA's own package index)",
    "tensorrt-rtx": "pip install '.[rtx,build]'",
}

_UNVERIFIED = {"8.7": "Orin", "9.0": "Hopper"}
"""TensorRT-RTX does not list them; whether it runs there was not verified."""

_NEEDS = {
    onnx.TensorProto.FLOAT8E4M3FN: ("FP8", 89),
    onnx.TensorProto.INT4: ("INT4", 80),
    onnx.TensorProto.BFLOAT16: ("BF16", 80),
    onnx.TensorProto.FLOAT: ("FP32", 80),
}
"""Types that the oldest devices can't multiply: the compute capability, times ten, from which on they can.

SM75 has no fp32 GEMM, bf16 or INT4, and FP8 begins with SM89: builds with TensorRT-RTX 1.7.1 for each of them.
"""


@dataclass(frozen=True)
class Builder:
    """A target whose library is installed."""

    name: Target
    trt: ModuleType

    @property
    def version(self) -> str:
        return self.trt.__version__


def open_target(name: Target) -> Builder:
    """Import the target's library, and have polygraphy use it.

    Polygraphy binds one of the two libraries when it is first imported, so a process builds for one target.

    Raises:
        UsageError: the library or polygraphy is not installed; the message names the extra.
    """
    wanted = "1" if name == "tensorrt-rtx" else "0"
    if "polygraphy" in sys.modules and os.environ.get("POLYGRAPHY_USE_TENSORRT_RTX", "0") != wanted:
        raise UsageError(f"target {name}: this process built for the other target before; build in a new one")
    os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = wanted
    for module in (MODULES[name], "polygraphy"):
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UsageError(f"target {name}: {module} can't be loaded ({error}); {_INSTALL[name]}") from None
    return Builder(name, importlib.import_module(MODULES[name]))


def choose_capabilities(target: Builder, wanted: Sequence[str]) -> tuple[str, ...]:
    """The compute capabilities to build for: those wanted, else the one of the GPU at hand.

    Raises:
        UsageError: the target can't build for one of them, or none is named and there is no GPU.
    """
    device = compute_capability()
    if target.name == "tensorrt":
        # It times kernels on the GPU at hand, and builds for that one only.
        if device is None:
            raise UsageError(
                "target tensorrt: it builds on a GPU, and none was found; --target tensorrt-rtx needs none"
            )
        if any(capability != device for capability in wanted):
            raise UsageError(
                f"compute capability {', '.join(wanted)}: tensorrt builds for the GPU at hand, which has {device}; "
                "leave --compute-capability out, or use --target tensorrt-rtx"
            )
        return (device,)
    accepted = [
        f"{name[2:-1]}.{name[-1]}"
        for name in sorted(target.trt.ComputeCapability.__members__, key=lambda name: (len(name), name))
        if name.removeprefix("SM").isdigit()
    ]
    if not wanted:
        if device is None:
            raise UsageError(
                "no GPU was found to build for: name one or more with --compute-capability; "
                f"accepted: {', '.join(accepted)}"
            )
        wanted = [device]
    for capability in wanted:
        if capability not in accepted:
            device_name = _UNVERIFIED.get(capability)
            note = f" ({device_name} is not listed by TensorRT-RTX and unverified)" if device_name else ""
            raise UsageError(
                f"compute capability {capability!r}: {target.name} {target.version} can't build for it{note}; "
                f"accepted: {', '.join(accepted)}"
            )
    return tuple(dict.fromkeys(wanted))


def check_types(graph: str, model: onnx.ModelProto, capabilities: Sequence[str]) -> None:
    """Refuse a graph whose types a device can't compute with; TensorRT would say so minutes later, and less clearly.

    Raises:
        UsageError: the message names graph, type and compute capability.
    """
    # Matrices only: float32 biases and scales are fine where no float32 matrix product is.
    used = {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) > 1}
    for data_type, (name, minimum) in _NEEDS.items():
        for capability in capabilities:
            if data_type in used and int(capability.replace(".", "")) < minimum:
                calibrated = data_type in (onnx.TensorProto.FLOAT8E4M3FN, onnx.TensorProto.INT4)
                instead = "calibrate for another format" if calibrated else "export with another --precision"
                raise UsageError(
                    f"{graph}: it computes in {name}, which compute capability {capability} does not have; "
                    f"build for {minimum / 10} or later, or {instead}"
                )
