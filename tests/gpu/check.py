"""Runs every provider that is installed on this machine's GPU against the CPU provider: `make gpu-check`.

A bf16 bundle, which the CPU provider can't compute, is compared with its emulation there.

Each provider runs in a process of its own: what one leaves behind, or breaks, is not the next one's. The JSON record
says what ran, how near it came, how long each stage took, and what did not run and why. It exits 1 where a provider
fails or disagrees with the CPU, and where nothing ran on a GPU: a check that checked nothing has not passed.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from catp.export.demo import scenes
from catp.runtime import CatpError, Pipeline, UsageError
from catp.runtime.bundle.folder import open_bundle
from catp.runtime.bundle.generation_settings import GREEDY
from catp.runtime.image_sides.pruned_encoder import EncoderWish
from catp.runtime.language_models.decoder_only import bind_prefill
from catp.runtime.providers import ON_HOST, PROVIDERS, open_provider
from catp.runtime.providers.base import Value, to_host

LIBRARIES = ("onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "cuda-python", "polygraphy", "torch")
RATIOS = (0.0, 0.5, 0.75)
SEED = 7
LIMITS = {
    "fp32": {"kept": 0.98, "answers": 0.97, "error": 0.05},  # TF32 is on by default on these devices
    "fp16": {"kept": 0.9, "answers": 0.9, "error": 0.1},
    "bf16": {"kept": 0.9, "answers": 0.9, "error": 0.1},
}
"""Least share of kept tokens and of whole answers that equal the CPU provider's, since near ties round differently; and
the largest error of any tensor, relative to its largest value."""
GPU_PROVIDERS = tuple(name for name in PROVIDERS if name not in ON_HOST)
BEAMS = GREEDY.override(num_beams=2, min_new_tokens=3)
COMPARED = ("image_embeds", "kept_embeds", "logits")
CURRENT_DEVICE = "tensorrt-rtx-current-device"
"""TensorRT-RTX asked to build for the device at hand, listed among its targets or not."""


def check(
    output: Annotated[Path, typer.Option("-o", "--output", help="The record.")] = Path("build/gpu-check.json"),
    bundle: Annotated[
        list[Path] | None,
        typer.Option(
            help="Bundles to run. Default: the demo, exported in fp32, fp16 and bf16, and with an encoder that prunes. "
            "A small BLIP whose encoder counts for itself, which no provider runs, is built and tried as well."
        ),
    ] = None,
    questions: Annotated[int, typer.Option(min=4, help="Held-out questions, in batches of 4.")] = 64,
    iterations: Annotated[int, typer.Option(min=1, help="Timed single questions, after 5 that are not.")] = 50,
    only: Annotated[str | None, typer.Option(hidden=True, help="One provider, in this process.")] = None,
) -> None:
    """Compare every GPU provider with the CPU provider, and write down what came out."""
    if only is not None:
        assert bundle is not None
        output.write_text(json.dumps(run_provider(bundle[0], only, questions, iterations)))
        return
    record: dict[str, Any] = {
        "schema_version": 1,
        "device": device(),
        "host": {"machine": platform.machine(), "python": platform.python_version()},
        "libraries": {name: installed(name) for name in LIBRARIES},
        "questions": questions,
        "timing": {"iterations": iterations, "batch": 1, "warmup_excluded": 5, "clock": "host, synchronised per stage"},
        "limits": LIMITS,
        "runs": [],
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        for path in bundle or export_demo(Path(scratch)):
            for name in (*([] if counts_itself(path) else GPU_PROVIDERS), CURRENT_DEVICE):
                run = {"bundle": path.name, "provider": name, **in_own_process(path, name, questions, iterations)}
                record["runs"].append(run)
                typer.echo(f"{run['bundle']} {name}: {run['outcome']}")
                output.write_text(json.dumps(record, indent=1) + "\n")
    typer.echo(f"record: {output}")
    outcomes = [run["outcome"] for run in record["runs"] if run["provider"] != CURRENT_DEVICE]
    if "agrees" not in outcomes:
        typer.echo("no provider ran on a GPU and agreed with the CPU", err=True)
        raise typer.Exit(1)
    if any(outcome.startswith(("failed", "disagrees")) for outcome in outcomes):
        raise typer.Exit(1)


def counts_itself(path: Path) -> bool:
    """Whether the bundle's vision encoder is in the dynamic form: only the device knows how many tokens are left."""
    try:
        pruning = open_bundle(path, verify=False).manifest.encoder_pruning
    except CatpError:  # for the run to record
        return False
    return pruning is not None and pruning.form == "dynamic"


def in_own_process(path: Path, name: str, questions: int, iterations: int) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile(suffix=".json") as result:
        command = [sys.executable, __file__, "--bundle", str(path), "--only", name, "-o", result.name]
        command += ["--questions", str(questions), "--iterations", str(iterations)]
        process = subprocess.run(command, capture_output=True, text=True)
        if process.returncode != 0:
            last = (process.stderr.strip().splitlines() or ["no message"])[-1]
            return {"outcome": f"failed: exit code {process.returncode}: {last}"}
        return dict(json.loads(Path(result.name).read_text()))


def run_provider(path: Path, name: str, questions: int, iterations: int) -> dict[str, Any]:
    """What one provider did; `outcome` is "agrees", or begins with "not available", "failed" or "disagrees"."""
    run: dict[str, Any] = {}
    try:
        if name == CURRENT_DEVICE:
            run |= try_current_device(path)
            return run
        if name.startswith("tensorrt"):
            run["build"] = build(path, name)
        before = free_memory()
        pipeline = Pipeline.load(path, provider=name)
        limits = LIMITS[pipeline.manifest.precision]
        expected = answers(reference(path), questions)
        run["ratios"] = compare(expected, answers(pipeline, questions), limits)
        run["latency_ms"] = latency(pipeline, iterations)
        after = free_memory()
        run["device_memory_bytes"] = None if before is None or after is None else before - after
        agrees = all(ratio["passed"] for ratio in run["ratios"].values())
        run["outcome"] = "agrees" if agrees else "disagrees with the CPU provider"
    except UsageError as error:  # not installed, or no device
        run["outcome"] = f"not available: {error}"
    except Exception as error:  # a record of what failed is the point
        run["outcome"] = f"failed: {type(error).__name__}: {error}"
    return run


def reference(path: Path) -> Pipeline:
    """The bundle on the CPU provider."""
    from catp.export.verification.emulated import emulated

    bundle = open_bundle(path)
    if bundle.manifest.precision == "bf16":
        return Pipeline(*emulated(bundle))
    return Pipeline(bundle, open_provider("cpu"))


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
    from catp.export.demo.vqa import CHECKPOINT as SMALL_BLIP
    from catp.export.exporter import export_bundle
    from catp.export.image_encoders.plan import EncoderOptions

    for precision in LIMITS:
        yield export_bundle(str(CHECKPOINT), folder / precision, precision=precision).path  # type: ignore[arg-type]
    pruned = EncoderOptions(rule="tome", flops=0.7)
    yield export_bundle(str(CHECKPOINT), folder / "fp32-pruned", encoder=pruned).path
    yield export_bundle(str(SMALL_BLIP), folder / "dynamic", encoder=EncoderOptions(form="dynamic")).path


def build(path: Path, target: str) -> dict[str, Any]:
    """Engines for this device, and how long they took."""
    from catp.export.engines.builder import build_engines
    from catp.export.engines.profiles import Limits

    plans = build_engines(path, target, limits=Limits(max_batch=4 * BEAMS.num_beams)).engines.plans  # type: ignore[arg-type]
    return {
        graph: {"seconds": plan.build_seconds, "bytes": plan.plan.size, "left_out": plan.left_out}
        for graph, plan in plans.items()
    }


def try_current_device(path: Path) -> dict[str, Any]:
    """Whether TensorRT-RTX builds, loads and runs the vision encoder for the device at hand, and how near it comes.

    Raises:
        UsageError: it is not installed, or there is no device.
    """
    from catp.export.engines.builder import build_plan, plan_requests
    from catp.export.engines.profiles import Limits
    from catp.export.engines.targets import open_target
    from catp.runtime.bundle.plans import plan_file, read_sidecar
    from catp.runtime.providers.cuda import Device
    from catp.runtime.providers.tensorrt import TrtEngine

    gpu, target, bundle = Device(), open_target("tensorrt-rtx"), open_bundle(path)
    run: dict[str, Any] = {"compute_capability": gpu.compute_capability}
    graph = "vision_encoder"
    limits = Limits(dynamic_encoder=counts_itself(path))
    requests = plan_requests(bundle, target, [gpu.compute_capability], limits)
    with tempfile.TemporaryDirectory() as folder:
        try:
            build_plan(bundle, target, next(r for r in requests if r.graph == graph), Path(folder))
        except CatpError as error:
            return {**run, "outcome": f"no plan was built: {error}"}
        plan, spec = plan_file(Path(folder), graph).read_bytes(), read_sidecar(Path(folder), graph)
    logger = target.trt.Logger(target.trt.Logger.ERROR)
    runtime = target.trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        return {**run, "outcome": "a plan was built, and did not load"}
    cpu = reference(path)
    pixels = cpu.preprocess([next(iter(scenes.examples(1, SEED))).image])
    expected, wanted = seen(cpu.encode(pixels))
    control = EncoderWish().inputs(bundle.manifest.encoder_pruning, bundle.manifest.model.family)
    kept, got = seen(TrtEngine(target.trt, engine, spec, gpu).bind({"pixel_values": pixels, **control}).run())
    run["patches"] = {"cpu": expected.tolist(), "device": kept.tolist()}
    run["max_relative_error"] = relative_error(wanted, got) if np.array_equal(expected, kept) else None
    return {**run, "outcome": "a plan was built, loaded and run"}


def seen(encoded: Mapping[str, Value]) -> tuple[np.ndarray, np.ndarray]:
    """An encoder's patches int64 [B, K], ascending, and its tokens float64 [B, I, W] in that order.

    Of one that keeps everything there are no patches.
    """
    embeds = to_host(encoded["image_embeds"]).astype(np.float64)
    if "kept_positions" not in encoded:
        return np.zeros((len(embeds), 0), np.int64), embeds
    positions = to_host(encoded["kept_positions"])
    order = np.argsort(positions, 1, kind="stable")
    tokens = np.take_along_axis(embeds[:, 1:], order[:, :, None], 1)
    return np.take_along_axis(positions, order, 1), np.concatenate([embeds[:, :1], tokens], 1)


def free_memory() -> int | None:
    """Bytes free on the device; None where it can't be read."""
    try:
        from cuda.bindings import runtime as cudart
    except ImportError:
        return None
    code, free, _ = cudart.cudaMemGetInfo()
    return int(free) if code == cudart.cudaError_t.cudaSuccess else None


def answers(pipeline: Pipeline, questions: int) -> dict[float, list[dict[str, Any]]]:
    """Per ratio, for every batch of 4: kept indices, generated tokens (greedy, with beams), and tensors in between."""
    graph = pipeline.manifest.graphs["language_model"]
    examples = list(scenes.examples(questions, SEED))
    results: dict[float, list[dict[str, Any]]] = {ratio: [] for ratio in RATIOS}
    for start in range(0, questions, 4):
        batch = examples[start : start + 4]
        prompts = [pipeline.tokenize(example.question.prompt) for example in batch]
        encoded = pipeline.encode(pipeline.preprocess([example.image for example in batch]))
        patches, embeds = seen(encoded)
        for ratio in RATIOS:
            pruned = pipeline.prune(encoded, pipeline.num_kept(ratio))
            engine, text_start = pipeline.language_model.engine, pipeline.manifest.pruning.num_query_tokens
            prefill = bind_prefill(
                engine, graph, pruned.kept_embeds, pruned.kept_indices, text_start, prompts, pad_token_id=0
            )
            results[ratio].append(
                {
                    "kept": to_host(pruned.kept_indices).copy(),
                    "patches": patches,
                    "image_embeds": embeds,
                    "kept_embeds": to_host(pruned.kept_embeds).astype(np.float64),
                    "logits": prefill.run()["logits"].numpy().astype(np.float64),
                    "tokens": pipeline.decode(pruned, prompts, 10).token_ids,
                    "beams": pipeline.decode(pruned, prompts, 10, settings=BEAMS).token_ids,
                }
            )
    return results


def relative_error(wanted: np.ndarray, got: np.ndarray) -> float | None:
    """Largest difference, relative to the largest value wanted; None where something is not finite."""
    error = float(np.abs(wanted - got).max() / np.abs(wanted).max())
    return error if np.isfinite(error) else None


def compare(
    expected: dict[float, list[dict[str, Any]]], found: dict[float, list[dict[str, Any]]], limits: dict[str, float]
) -> dict[str, Any]:
    """Shares of equal patches, kept tokens and answers, and the largest errors, these where the kept sets are equal."""
    report: dict[str, Any] = {}
    for ratio, batches in expected.items():
        same: dict[str, list[bool]] = {"tokens": [], "beams": []}
        kept: list[float] = []
        patches: list[float] = []
        errors: dict[str, list[float | None]] = {name: [] for name in COMPARED}
        for wanted, got in zip(batches, found[ratio], strict=True):
            for row in range(len(wanted["tokens"])):
                for how, rows in same.items():
                    rows.append(wanted[how][row] == got[how][row])
                kept.append(float(np.isin(wanted["kept"][row], got["kept"][row]).mean()))
                left, other = wanted["patches"][row], got["patches"][row]
                patches.append(float(np.isin(left, other).mean()) if len(left) else 1.0)
                for name in COMPARED:
                    if patches[-1] == 1 and (name == "image_embeds" or kept[-1] == 1):
                        errors[name].append(relative_error(wanted[name][row], got[name][row]))
        largest = {
            name: None if None in values else max((v for v in values if v is not None), default=0.0)
            for name, values in errors.items()
        }
        shares = {
            "patches": float(np.mean(patches)),
            "kept": float(np.mean(kept)),
            "answers": float(np.mean(same["tokens"])),
            "beams": float(np.mean(same["beams"])),
        }
        least = {"patches": limits["kept"], **limits}
        passed = all(shares[name] >= least.get(name, limits["answers"]) for name in shares) and all(
            error is not None and error <= limits["error"] for error in largest.values()
        )
        report[f"{ratio:g}"] = {"equal": shares, "max_relative_error": largest, "passed": passed}
    return report


def latency(pipeline: Pipeline, iterations: int) -> dict[str, dict[str, float]]:
    """Median and 95th percentile of every stage, one question at a time."""
    example = next(iter(scenes.examples(1, SEED)))
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


if __name__ == "__main__":
    typer.run(check)
