"""Every task of MADTP's paper at full size: `python tests/benchmarks/tasks.py`.

Checkpoints of the paper's geometries with random weights are exported dense and with a vision encoder at a fifth of its
work (the rule `cls` in every layer), each export in a process of its own, whose time and memory are noted. Then one
request of each task is answered by both bundles and by PyTorch (transformers; for NLVR2 the module of this project),
in interleaved rounds, from picture and text to the answer, fp32 on the CPU. Quote the ratios: they are paired by round.
Nothing else should run meanwhile: half an hour, 5 GB of memory. The report is kept as JSON in
tests/benchmarks/records/; `--record FILE` only prints its tables.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from mid_size import ROOT
from PIL import Image
from pydantic import BaseModel, ConfigDict
from transformers import AutoImageProcessor, AutoTokenizer

from catp.calibration.benchmark.contenders.subject import make_picture
from catp.calibration.benchmark.machine import Machine, describe_machine, load_average
from catp.calibration.benchmark.synthetic.checkpoint import save_checkpoint
from catp.calibration.benchmark.synthetic.sizes import Preset
from catp.calibration.benchmark.timing.intervals import Ratio, paired_ratio
from catp.runtime import Pipeline
from catp.runtime.system.machine import available_cpus

RECORD = ROOT / "tests" / "benchmarks" / "records" / "tasks.json"
SHARE = 0.2
NEW_TOKENS = 10
TEXT = "is there a red circle in the top left?"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Export(_Strict):
    seconds: float
    peak_bytes: int  # largest resident set, mapped files included
    bundle_bytes: int


class TaskResult(_Strict):
    task: str
    parameters: int
    dense_export: Export
    pruned_export: Export
    image_tokens: tuple[int, int]  # that leave the encoder, dense and pruned
    milliseconds: dict[str, float]  # medians: dense, pruned, pytorch
    pruned_to_dense: Ratio  # times as fast
    pruned_to_pytorch: Ratio
    dense_to_pytorch: Ratio


class Report(_Strict):
    machine: Machine
    load_average_before: float | None
    rounds: int
    share: float
    tasks: tuple[TaskResult, ...]


@dataclass(frozen=True)
class Task:
    """One of the paper's.

    Args:
        preset: its geometry, as `catp-bench --synthetic` names it.
        ask: an answer of a bundle.
        ask_pytorch: an answer of the model, from pictures, processor and tokenizer.
    """

    preset: Preset
    ask: Callable[[Pipeline, list[Image.Image]], object]
    ask_pytorch: Callable[[Any, torch.Tensor, torch.Tensor], object]
    pictures: int = 1


LENGTHS = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "num_beams": 1, "do_sample": False}
TASKS = {
    "captions, 384": Task(
        "blip-caption",
        lambda pipeline, pictures: pipeline.generate(pictures, ["a"], **LENGTHS),  # type: ignore[arg-type]
        lambda model, pixels, ids: model.generate(pixels, input_ids=ids[:, :3].clone(), **LENGTHS),
    ),
    "VQA, 480": Task(
        "blip-vqa",
        lambda pipeline, pictures: pipeline.generate(pictures, [TEXT], **LENGTHS),  # type: ignore[arg-type]
        lambda model, pixels, ids: model.generate(ids, pixels, attention_mask=torch.ones_like(ids), **LENGTHS),
    ),
    "retrieval, 384": Task(
        "blip-retrieval",
        lambda pipeline, pictures: pipeline.match(pictures, [TEXT]),
        lambda model, pixels, ids: (model(ids, pixels), model.text_encoder(ids)),  # both heads, the picture once
    ),
    "NLVR2, 384": Task(
        "blip-nlvr2",
        lambda pipeline, pictures: pipeline.judge([(pictures[0], pictures[1])], [TEXT]),
        lambda model, pixels, ids: model(pixels, ids, torch.ones_like(ids)),
        pictures=2,
    ),
    "CLIP, ViT-B/16 at 224": Task(
        "clip-b16",
        lambda pipeline, pictures: pipeline.match(pictures, [TEXT]),
        lambda model, pixels, ids: model(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids)),
    ),
}


def export(checkpoint: Path, output: Path, *options: object) -> Export:
    """`catp-export`, with its time and its memory."""
    code = "from catp.export.commands.export import app; app()"
    command = [sys.executable, "-c", code, "--model", checkpoint, *options, "-o", output]
    began = time.monotonic()
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"catp-export of {checkpoint} failed")
    size = sum(path.stat().st_size for path in output.iterdir())
    return Export(seconds=time.monotonic() - began, peak_bytes=1024 * usage.ru_maxrss, bundle_bytes=size)


def measure(task: Task, checkpoint: Path, dense: Path, pruned: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of each round."""
    pictures = [make_picture(np.random.default_rng(seed)) for seed in range(task.pictures)]
    bundles = {"dense": Pipeline.load(dense), "pruned": Pipeline.load(pruned)}
    torch.set_num_threads(available_cpus())
    processor = AutoImageProcessor.from_pretrained(checkpoint, backend="pil")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = next(_loaded(checkpoint))

    def pytorch() -> None:
        with torch.inference_mode():
            pixels = processor(pictures, return_tensors="pt").pixel_values
            task.ask_pytorch(model, pixels, torch.tensor([tokenizer(TEXT).input_ids]))

    ways: dict[str, Callable[[], object]] = {
        **{name: lambda pipeline=pipeline: task.ask(pipeline, pictures) for name, pipeline in bundles.items()},  # type: ignore[misc]
        "pytorch": pytorch,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    order = np.random.default_rng(0)
    for number in range(rounds + 2):
        for name in order.permutation(list(ways)).tolist():
            began = time.perf_counter()
            ways[name]()
            if number >= 2:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def _loaded(checkpoint: Path) -> Iterator[Any]:
    from catp.export.checkpoints.loading import load_checkpoint

    kind = type(load_checkpoint(str(checkpoint)).model)
    yield kind.from_pretrained(checkpoint, use_safetensors=True).eval()  # with the attention that it chooses itself


def run_task(name: str, task: Task, folder: Path, rounds: int) -> TaskResult:
    checkpoint, dense, pruned = (folder / part for part in ("checkpoint", "dense", "pruned"))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    save_checkpoint(task.preset, checkpoint)
    exports = (
        export(checkpoint, dense),
        export(checkpoint, pruned, "--encoder-pruning", "cls", "--encoder-flops", SHARE),
    )
    seconds = measure(task, checkpoint, dense, pruned, rounds)
    manifests = [Pipeline.load(path).manifest for path in (dense, pruned)]
    spec = manifests[1].encoder_pruning
    assert spec is not None and spec.kept_tokens is not None
    result = TaskResult(
        task=name,
        parameters=sum(graph.parameters for graph in manifests[0].graphs.values()),
        dense_export=exports[0],
        pruned_export=exports[1],
        image_tokens=(manifests[0].tokens, spec.tokens_by_layer(spec.kept_tokens)[-1][1]),
        milliseconds={way: 1e3 * float(np.median(values)) for way, values in seconds.items()},
        pruned_to_dense=paired_ratio(seconds["dense"], seconds["pruned"], 0),
        pruned_to_pytorch=paired_ratio(seconds["pytorch"], seconds["pruned"], 0),
        dense_to_pytorch=paired_ratio(seconds["pytorch"], seconds["dense"], 0),
    )
    shutil.rmtree(folder)
    return result


def tables(report: Report) -> list[str]:
    """Markdown: speed, then exports."""

    def cell(ratio: Ratio) -> str:
        low, high = ratio.interval_95 or (ratio.median, ratio.median)
        return f"{ratio.median:.2f} ({low:.2f} to {high:.2f})"

    head = ["task", "PyTorch, ms", "dense, ms", f"encoder at {report.share:.0%}, ms"]
    head += ["times as fast as dense", "times as fast as PyTorch", "dense: times as fast as PyTorch"]
    rows = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for one in report.tasks:
        times = [f"{one.milliseconds[way]:.0f}" for way in ("pytorch", "dense", "pruned")]
        ratios = [cell(ratio) for ratio in (one.pruned_to_dense, one.pruned_to_pytorch, one.dense_to_pytorch)]
        rows.append(f"| {' | '.join([one.task, *times, *ratios])} |")
    head = ["task", "parameters", "bundle", "dense export", f"export at {report.share:.0%}", "image tokens left"]
    rows += ["", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for one in report.tasks:
        cells = [one.task, f"{one.parameters / 1e6:.0f} million", f"{one.pruned_export.bundle_bytes / 1e9:.2f} GB"]
        for found in (one.dense_export, one.pruned_export):
            cells.append(f"{found.seconds:.0f} s, {found.peak_bytes / 1e9:.1f} GB")
        rows.append(f"| {' | '.join([*cells, '{1} of {0}'.format(*one.image_tokens)])} |")
    return rows


def main(
    folder: Annotated[Path, typer.Option(help="Where checkpoints and bundles lie meanwhile.")] = Path("build/tasks"),
    rounds: Annotated[int, typer.Option(min=6)] = 10,
    only: Annotated[str, typer.Option(help="Tasks whose names begin so.")] = "",
    output: Annotated[Path, typer.Option("-o", "--output", help="The report.")] = RECORD,
    record: Annotated[Path | None, typer.Option(help="Print the tables of this report, and time nothing.")] = None,
) -> None:
    """Export and time every task."""
    if record is None:
        load_before = load_average()
        found = [run_task(name, task, folder, rounds) for name, task in TASKS.items() if name.startswith(only)]
        report = Report(
            machine=describe_machine(), load_average_before=load_before, rounds=rounds, share=SHARE, tasks=tuple(found)
        )
        output.write_text(report.model_dump_json(indent=1) + "\n")
        record = output
    print("\n".join(tables(Report.model_validate_json(record.read_bytes()))))


if __name__ == "__main__":
    typer.run(main)
