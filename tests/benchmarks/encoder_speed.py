"""What pruning inside the vision encoder gains in time: `python tests/benchmarks/encoder_speed.py`.

A BLIP whose vision encoder is ViT-B/16 at 384 x 384 (577 tokens, 12 layers of 768; random weights, random dictionary)
is exported dense, with MADTP's rule in every layer, and with a rule that costs nothing (random); the first two are also
quantised by catp-calibrate precision. Their encoders run in one interleaved loop in ONNX Runtime on the CPU, with
schedules that leave a half and a fifth of the work. Quote the ratios: they are paired by round. Nothing else should run
meanwhile. The report is kept as JSON in tests/benchmarks/records/; `--record FILE` only prints the tables of one.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from mid_size import CALIBRATION, call
from pydantic import BaseModel
from safetensors.torch import save_file
from transformers import BlipConfig, BlipForQuestionAnswering

from catp.calibration.benchmark.machine import Machine, describe_machine
from catp.calibration.benchmark.timing.intervals import Ratio, paired_ratio
from catp.export.demo.vqa import CHECKPOINT
from catp.export.exporter import export_bundle
from catp.export.image_encoders.plan import EncoderOptions
from catp.runtime.bundle.folder import open_bundle
from catp.runtime.image_sides.pruned_encoder import EncoderWish
from catp.runtime.providers import open_provider

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "tests" / "benchmarks" / "records" / "encoder-speed.json"
SIDE, WIDTH = 384, 768
SHARES = (0.5, 0.2)
EXPORTS = {"dense": None, "madtp": "madtp", "random": "random"}
QUANTISED = ("dense", "madtp")


class SpeedRow(BaseModel):
    """One setting of one encoder."""

    encoder: str  # dense, madtp, random
    precision: str
    share: float  # of the dense encoder's work
    batch: int
    milliseconds: float  # median
    times_as_fast: Ratio  # as the dense encoder of that precision and batch


class SpeedReport(BaseModel):
    """Everything that was measured, with the machine."""

    machine: Machine
    rounds: int
    rows: list[SpeedRow]
    share_of_scores: Ratio  # of the time of MADTP's encoder, at half of the work, fp32, batch 1


def make_checkpoint(folder: Path) -> None:
    """Random weights, with the tokenizer of the small BLIP that is embedded here."""
    torch.manual_seed(0)
    shutil.copytree(CHECKPOINT, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json", "*.md"))
    config = BlipConfig(
        vision_config={
            "hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": 12, "num_attention_heads": 12,
            "image_size": SIDE, "patch_size": 16, "layer_norm_eps": 1e-6,
        },
        text_config={
            **json.loads((CHECKPOINT / "config.json").read_text())["text_config"], "hidden_size": WIDTH,
            "encoder_hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 12,
        },
    )  # fmt: skip
    model = BlipForQuestionAnswering(config)
    for parameter in model.parameters():  # not all tokens alike
        parameter.data += 0.02 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    save_file({"space_dict": 0.1 * torch.randn(100, WIDTH)}, folder / "madtp.safetensors")
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            text = (folder / name).read_text()
            (folder / name).write_text(text.replace(": 96", f": {SIDE}"))


def prepare(folder: Path) -> None:
    """Checkpoint and bundles in `folder`, as far as they are not there."""
    checkpoint = folder / "checkpoint"
    if not checkpoint.is_dir():
        make_checkpoint(checkpoint)
    for name, rule in EXPORTS.items():
        if not (folder / name).is_dir():
            options = EncoderOptions() if rule is None else EncoderOptions(rule=rule, flops=SHARES[0])
            export_bundle(str(checkpoint), folder / name, encoder=options)
    for name in QUANTISED:
        if not (folder / f"{name}-int8").is_dir():
            quantised = ("--to", "int8", *CALIBRATION, "-o", folder / f"{name}-int8")
            call("calibrate", "precision", folder / name, *quantised)


def measure(folder: Path, batch: int, rounds: int, seed: int = 0) -> dict[tuple[str, str, float], list[float]]:
    """Seconds of every round, by encoder, precision and share."""
    provider = open_provider("cpu")
    pixels = np.random.default_rng(seed).standard_normal((batch, 3, SIDE, SIDE), np.float32)
    cases = []
    for name, precision in [*((name, "fp32") for name in EXPORTS), *((name, "int8") for name in QUANTISED)]:
        bundle = open_bundle(folder / (name if precision == "fp32" else f"{name}-int8"), verify=False)
        engine, spec = provider.engine(bundle, "vision_encoder"), bundle.manifest.encoder_pruning
        for share in (1.0,) if spec is None else SHARES:
            wish = EncoderWish() if spec is None else EncoderWish(flops=share)
            step = engine.bind({"pixel_values": pixels, **wish.inputs(spec, "")})
            cases.append(((name, precision, share), step))
    seconds: dict[tuple[str, str, float], list[float]] = {key: [] for key, _ in cases}
    order = np.random.default_rng(seed)
    for number in range(rounds + 2):
        for place in order.permutation(len(cases)):
            key, step = cases[place]
            started = time.perf_counter()
            step.run()
            if number >= 2:
                seconds[key].append(time.perf_counter() - started)
    return seconds


def report_of(folder: Path, batches: Sequence[int], rounds: int) -> SpeedReport:
    rows, scores = [], None
    for batch in batches:
        seconds = measure(folder, batch, rounds)
        for (name, precision, share), values in seconds.items():
            dense = seconds["dense", precision, 1.0]
            rows.append(
                SpeedRow(
                    encoder=name,
                    precision=precision,
                    share=share,
                    batch=batch,
                    milliseconds=1e3 * float(np.median(values)),
                    times_as_fast=paired_ratio(dense, values, seed=0),
                )
            )
        if scores is None:
            free, madtp = seconds["random", "fp32", 0.5], seconds["madtp", "fp32", 0.5]
            found = paired_ratio(free, madtp, seed=0)
            assert found.interval_95 is not None
            ends = (1 - found.interval_95[1], 1 - found.interval_95[0])
            scores = Ratio(median=1 - found.median, interval_95=ends)
    assert scores is not None
    return SpeedReport(machine=describe_machine(), rounds=rounds, rows=rows, share_of_scores=scores)


def speed_rows(report: SpeedReport) -> list[str]:
    """Lines of Markdown."""
    rows = ["| vision encoder | precision | batch | work | ms | times as fast as dense |", "|---" * 6 + "|"]
    for row in report.rows:
        low, high = row.times_as_fast.interval_95 or (float("nan"), float("nan"))
        faster = "" if row.share == 1 else f"{row.times_as_fast.median:.2f} ({low:.2f} to {high:.2f})"
        cells = (row.encoder, row.precision, row.batch, f"{row.share:.0%}", f"{row.milliseconds:.0f}", faster)
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return rows


def main(
    folder: Annotated[Path, typer.Option(help="Where checkpoint and bundles are kept.")] = Path("build/encoder-speed"),
    rounds: Annotated[int, typer.Option(min=6, help="Rounds of batch 1; a third of them for batch 8.")] = 18,
    output: Annotated[Path, typer.Option("-o", "--output", help="The report.")] = RECORD,
    record: Annotated[Path | None, typer.Option(help="Print the tables of this report, and time nothing.")] = None,
) -> None:
    """Time dense and pruned vision encoders against each other."""
    if record is None:
        prepare(folder)
        found = report_of(folder, (1,), rounds)
        more = report_of(folder, (8,), max(6, rounds // 3))
        found = found.model_copy(update={"rows": [*found.rows, *more.rows]})
        output.write_text(found.model_dump_json(indent=1) + "\n")
    found = SpeedReport.model_validate_json((record or output).read_text())
    print("\n".join(speed_rows(found)))
    low, high = found.share_of_scores.interval_95 or (0.0, 0.0)
    print(f"\nMADTP's scores take {found.share_of_scores.median:.1%} of its encoder's time ({low:.1%} to {high:.1%}).")


if __name__ == "__main__":
    typer.run(main)
