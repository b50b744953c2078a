"""The commands of other tools that build what catp-build builds."""

from __future__ import annotations

import shlex
from pathlib import Path

from catp.runtime.bundle.plans import PlanRequest, ShapeRange, plan_file

PREPARED = "prepared"
"""Folder that the printed commands use."""


def commands(bundle: Path, request: PlanRequest) -> list[str]:
    """Shell lines for one graph: prepare the ONNX file, then build it with polygraphy, or with trtexec."""
    onnx_file = str(Path(PREPARED) / f"{request.graph}.onnx")
    plan = str(plan_file(Path(PREPARED), request.graph))
    fixed = [word for name, number in request.fixed.items() for word in ("--fix", f"{name}={number}")]
    prepare = ["python", "-m", "catp.export.commands.prepare", str(bundle), request.graph, "-o", PREPARED, *fixed]
    lines = [shlex.join(prepare), shlex.join(_polygraphy(request, onnx_file, plan))]
    if request.target == "tensorrt-rtx":
        lines[-1] = f"POLYGRAPHY_USE_TENSORRT_RTX=1 {lines[-1]}"
    else:
        lines.append("# or, where every attention is in half precision (trtexec can't mark it as decomposable):")
        lines.append(shlex.join(_trtexec(request, onnx_file, plan)))
    return lines


def _polygraphy(request: PlanRequest, onnx_file: str, plan: str) -> list[str]:
    words = ["polygraphy", "convert", onnx_file, "--convert-to", "trt", "-o", plan]
    words += ["--strongly-typed", "--decomposable-attentions"]
    for profile in request.profiles:
        ranges = {**profile.shapes, **profile.values}
        for which in ("min", "opt", "max"):
            shapes = [f"{name}:{list(getattr(extent, which))}".replace(" ", "") for name, extent in ranges.items()]
            words += [f"--trt-{which}-shapes", *shapes]
    if request.target == "tensorrt-rtx":
        words += ["--compute-capabilities", *request.compute_capabilities]
    if request.workspace_bytes is not None:
        words += ["--pool-limit", f"workspace:{request.workspace_bytes}"]
    return words


def _trtexec(request: PlanRequest, onnx_file: str, plan: str) -> list[str]:
    words = ["trtexec", f"--onnx={onnx_file}", f"--saveEngine={plan}", "--stronglyTyped", "--skipInference"]
    for index, profile in enumerate(request.profiles):
        if len(request.profiles) > 1:
            words.append(f"--profile={index}")
        ranges = {**profile.shapes, **profile.values}
        for which in ("min", "opt", "max"):
            words.append(f"--{which}Shapes={','.join(_shape(name, extent, which) for name, extent in ranges.items())}")
    if request.workspace_bytes is not None:
        words.append(f"--memPoolSize=workspace:{request.workspace_bytes / 2**20:g}M")
    return words


def _shape(name: str, extent: ShapeRange, which: str) -> str:
    return f"{name}:{'x'.join(str(number) for number in getattr(extent, which))}"
