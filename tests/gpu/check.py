"""Runs every provider that is installed on this machine's GPU against the CPU provider: `make gpu-check`.

One JSON record says what ran, how near it came, how long each stage took, and what did not run and why. It exits 1
where a provider disagrees with the CPU, and where nothing ran on a GPU: a check that checked nothing has not passed.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from catp.export.demo import scenes
from catp.runtime import CatpError, Pipeline
from catp.runtime.engines import PROVIDERS
from catp.runtime.engines.cuda import compute_capability
from catp.runtime.generation import bind_prefill

LIBRARIES = ("onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "cuda-python", "polygraphy", "torch")
RATIOS = (0.0, 0.5, 0.75)
LIMITS = {"fp32": {"kept": 0.98, "answers": 0.97}, "fp16": {"kept": 0.9, "answers": 0.9}}
"""Least share of kept tokens and of whole answers that equal the CPU provider's: near ties round differently."""


def check(
    output: Annotated[Path, typer.Option("-o", "--output", help="The record.")] = Path("build/gpu-check.json"),
    bundle: Annotated[
        list[Path] | None, typer.Option(help="Bundles to run. Default: the demo, exported in fp32 and fp16.")
    ] = None,
    questions: Annotated[int, typer.Option(min=4, help="Held-out questions, in batches of 4.")] = 64,
    iterations: Annotated[int, typer.Option(min=1, help="Timed single questions, after 5 that are not.")] = 50,
) -> None:
    """Compare every GPU provider with the CPU provider, and write down what came out."""
    record: dict[str, Any] = {
        "schema_version": 1,
        "device": device(),
        "host": {"machine": platform.machine(), "python": platform.python_version()},
        "libraries": {name: installed(name) for name in LIBRARIES},
        "questions": questions,
        "timing": {"iterations": iterations, "batch": 1, "warmup_excluded": 5, "clock": "host, synchronised per stage"},
        "bundles": [],
    }
    with tempfile.TemporaryDirectory() as scratch:
        for path in bundle or export_demo(Path(scratch)):
            record["bundles"].append(check_bundle(path, Path(scratch), questions, iterations))
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(record, indent=1) + "\n")
    runs = [run for entry in record["bundles"] for run in entry["providers"]]
    for run in runs:
        typer.echo(f"{run['bundle']} {run['provider']}: {run['outcome']}")
    print(f"record: {output}")
    ran = [run for run in runs if "ratios" in run]
    if not ran:
        typer.echo("nothing ran on a GPU", err=True)
    raise typer.Exit(0 if ran and all(run["outcome"] == "agrees" for run in ran) else 1)


def device() -> dict[str, Any] | None:
    """The first GPU; None where the driver's tool finds none."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    fields = ("name", "driver_version", "memory.total", "compute_cap", "power.limit")
    command = [tool, f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode or not result.stdout.strip():
        return None
    return dict(zip(fields, (part.strip() for part in result.stdout.splitlines()[0].split(","))))


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def export_demo(folder: Path) -> Iterator[Path]:
    from catp.export.demo import CHECKPOINT
    from catp.export.exporter import export_bundle

    for precision in ("fp32", "fp16"):
        yield export_bundle(str(CHECKPOINT), folder / precision, precision=precision).path  # type: ignore[arg-type]


def check_bundle(path: Path, scratch: Path, questions: int, iterations: int) -> dict[str, Any]:
    reference = Pipeline.load(path)
    precision = reference.manifest.precision
    expected = answers(reference, questions)
    entry: dict[str, Any] = {"model": reference.manifest.model.id, "precision": precision, "providers": []}
    for name in PROVIDERS:
        if name == "cpu":
            continue
        run: dict[str, Any] = {"bundle": path.name, "provider": name}
        entry["providers"].append(run)
        try:
            if name.startswith("tensorrt"):
                run["build"] = build(path, name)
            with memory_used() as used:
                pipeline = Pipeline.load(path, provider=name)
                run["ratios"] = compare(expected, answers(pipeline, questions), LIMITS[precision])
                run["latency_ms"] = latency(pipeline, iterations)
            run["device_memory_bytes"] = used[0] if used else None
            agrees = all(ratio["passed"] for ratio in run["ratios"].values())
            run["outcome"] = "agrees" if agrees else "disagrees with the CPU provider"
        except CatpError as error:
            run["outcome"] = f"not run: {error}"
    capability = compute_capability()
    if capability is not None and installed("tensorrt-rtx"):
        entry["tensorrt_rtx_here"] = try_current_device(path, capability)
    return entry


def build(path: Path, target: str) -> dict[str, Any]:
    """Engines for this device, and how long they took."""
    from catp.export.engines.builder import build_engines

    plans = build_engines(path, target).engines.plans  # type: ignore[arg-type]
    return {
        graph: {"seconds": plan.build_seconds, "bytes": plan.plan.size, "left_out": plan.left_out}
        for graph, plan in plans.items()
    }


def try_current_device(path: Path, capability: str) -> dict[str, str]:
    """Whether TensorRT-RTX builds and loads a plan for the device at hand, listed among its targets or not."""
    import tensorrt_rtx as trt

    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path / "vision_encoder.onnx")):
        return {"compute_capability": capability, "outcome": "the vision encoder was not parsed"}
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    shape = (1, *network.get_input(0).shape[1:])
    profile.set_shape("pixel_values", shape, shape, shape)
    config.add_optimization_profile(profile)
    config.num_compute_capabilities = 1
    if not config.set_compute_capability(trt.ComputeCapability.CURRENT, 0):
        return {"compute_capability": capability, "outcome": "the device was refused as a target"}
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        return {"compute_capability": capability, "outcome": "no plan was built"}
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    outcome = "a plan was built and loaded" if engine is not None else "a plan was built, and did not load"
    return {"compute_capability": capability, "outcome": outcome}


def answers(pipeline: Pipeline, questions: int) -> dict[float, list[dict[str, Any]]]:
    """Per ratio, for every batch of 4: kept indices, generated tokens, and the tensors in between."""
    graph = pipeline.manifest.graphs["language_model"]
    batches = [list(scenes.examples(questions, seed=7))[start : start + 4] for start in range(0, questions, 4)]
    results: dict[float, list[dict[str, Any]]] = {ratio: [] for ratio in RATIOS}
    for batch in batches:
        prompts = [pipeline.tokenize(example.question.prompt) for example in batch]
        embeds = pipeline.encode(pipeline.preprocess([example.image for example in batch]))
        for ratio in RATIOS:
            pruned = pipeline.prune(embeds, pipeline.num_kept(ratio))
            positions = pruned.kept_indices
            engine = pipeline._language_model._engine
            prefill = bind_prefill(
                engine, graph, pruned.kept_embeds, positions, pipeline.manifest.pruning.num_query_tokens, prompts, 0
            )
            generation = pipeline.decode(pruned, prompts, 10)
            results[ratio].append(
                {
                    "kept": np.asarray(pruned.kept_indices.numpy()),  # type: ignore[union-attr]
                    "image_embeds": np.asarray(embeds["image_embeds"].numpy(), np.float64),
                    "kept_embeds": np.asarray(pruned.kept_embeds.numpy(), np.float64),  # type: ignore[union-attr]
                    "logits": np.asarray(prefill.run()["logits"].numpy(), np.float64),
                    "tokens": generation.token_ids,
                }
            )
    return results


def compare(
    expected: dict[float, list[dict[str, Any]]], found: dict[float, list[dict[str, Any]]], limits: dict[str, float]
) -> dict[str, Any]:
    """Shares of equal kept tokens and answers; errors relative to the largest value, where the kept sets are equal."""
    report: dict[str, Any] = {}
    for ratio, batches in expected.items():
        same, rows, kept, errors = 0, 0, 0.0, {"image_embeds": 0.0, "kept_embeds": 0.0, "logits": 0.0}
        for wanted, got in zip(batches, found[ratio], strict=True):
            for row in range(len(wanted["tokens"])):
                rows += 1
                same += wanted["tokens"][row] == got["tokens"][row]
                overlap = np.isin(wanted["kept"][row], got["kept"][row]).mean()
                kept += float(overlap)
                for name in errors:
                    if name == "image_embeds" or overlap == 1:
                        scale = np.abs(wanted[name][row]).max()
                        errors[name] = max(
                            errors[name], float(np.abs(wanted[name][row] - got[name][row]).max() / scale)
                        )
        shares = {"kept": kept / rows, "answers": same / rows}
        passed = all(shares[name] >= limit for name, limit in limits.items())
        report[f"{ratio:g}"] = {"equal": shares, "max_relative_error": errors, "passed": passed}
    return report


def latency(pipeline: Pipeline, iterations: int) -> dict[str, dict[str, float]]:
    """Median and 95th percentile of every stage, one question at a time."""
    example = next(iter(scenes.examples(1, seed=7)))
    timings = [
        pipeline.generate([example.image], [example.question.prompt])[0].timings_ms for _ in range(iterations + 5)
    ][5:]
    return {
        stage: {
            "p50": float(np.percentile([getattr(timing, stage) for timing in timings], 50)),
            "p95": float(np.percentile([getattr(timing, stage) for timing in timings], 95)),
        }
        for stage in ("preprocess", "vision", "qformer", "prefill", "decode_per_token", "total")
    }


@contextmanager
def memory_used() -> Iterator[list[int]]:
    """Device memory taken between entry and exit, bytes, in a list that is empty where it can't be read."""
    used: list[int] = []
    try:
        from cuda.bindings import runtime as cudart
    except ImportError:
        yield used
        return
    code, before, _ = cudart.cudaMemGetInfo()
    yield used
    if code == cudart.cudaError_t.cudaSuccess:
        _, after, _ = cudart.cudaMemGetInfo()
        used.append(int(before) - int(after))


if __name__ == "__main__":
    typer.run(check)
