"""The accuracy tables of docs/encoder-pruning.md: `python tests/benchmarks/encoder_accuracy.py`.

Both small BLIPs, trained dense and with MADTP, are exported with every rule; each bundle answers the same questions, of
held-out scenes and easy-vqa's test pictures, with schedules that leave 70, 50 and 20 % of the encoder's work, and
MADTP's also in the dynamic form and with a schedule from its counts. Beside each accuracy stands the time of the
encoder for one picture, interleaved. The report is kept as JSON in export/demo/vqa/accuracy/; `--record FILE` only
prints the tables of one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from pydantic import BaseModel

from catp.calibration.benchmark.machine import Machine, describe_machine
from catp.calibration.benchmark.timing.intervals import Ratio, paired_ratio
from catp.calibration.data import open_data
from catp.calibration.data.halves import half
from catp.calibration.encoder.answering import Asked, answer_all
from catp.calibration.encoder.counting import find_schedule
from catp.calibration.encoder.report import EncoderScore, EncoderSetting, score
from catp.export.demo.vqa import CHECKPOINT, DENSE
from catp.export.exporter import export_bundle
from catp.export.image_encoders.plan import EncoderOptions
from catp.runtime.errors import UsageError
from catp.runtime.image_sides.pruned_encoder import EncoderWish
from catp.runtime.pipeline import Pipeline

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "export" / "demo" / "vqa" / "accuracy" / "encoder-pruning.json"
SHARES = (0.7, 0.5, 0.2)
DATA = ("demo", "easy-vqa")
SEED = 2024
WEIGHTS = {"dense": DENSE, "madtp": CHECKPOINT}
RULES = {"dense": ("self-cls", "cls", "tome", "random"), "madtp": ("madtp", "self-cls", "cls", "tome", "random")}


class AccuracyRow(BaseModel):
    """One setting of one checkpoint on one data set."""

    weights: str  # dense, madtp: how the checkpoint was trained
    rule: str
    form: str  # dense, schedule, counted (a schedule from the dynamic form's counts), dynamic
    asked_share: float
    data: str
    score: EncoderScore
    encoder_ms: float  # median, one picture
    times_as_fast: Ratio  # as the dense encoder with the same weights


class AccuracyTables(BaseModel):
    """Everything that was measured, with the machine."""

    machine: Machine
    questions: dict[str, int]
    rows: list[AccuracyRow]


@dataclass
class Case:
    """A setting, with the pipeline that runs it."""

    weights: str
    rule: str
    form: str
    share: float
    asked: Asked
    setting: EncoderSetting


def export_all(folder: Path) -> None:
    """Bundles in `folder`, as far as they are not there."""
    for weights, checkpoint in WEIGHTS.items():
        wanted = {"dense": EncoderOptions(), **{rule: EncoderOptions(rule=rule, flops=0.5) for rule in RULES[weights]}}
        if weights == "madtp":
            wanted["dynamic"] = EncoderOptions(form="dynamic")
        for name, options in wanted.items():
            target = folder / f"{weights}-{name}"
            if not target.is_dir():
                print(f"export {target}", flush=True)
                export_bundle(str(checkpoint), target, encoder=options)


def cases_of(folder: Path, data: str) -> Iterator[Case]:
    """All settings for a data set, the dense ones first."""
    for weights, rules in RULES.items():
        dense = Pipeline.load(folder / f"{weights}-dense", verify=False)
        yield Case(weights, "none", "dense", 1.0, Asked(dense, EncoderWish()), EncoderSetting(name="dense"))
        for rule in rules:
            pipeline = Pipeline.load(folder / f"{weights}-{rule}", verify=False)
            spec = pipeline.manifest.encoder_pruning
            assert spec is not None
            for share in SHARES:
                wish = EncoderWish(flops=share)
                try:
                    setting = EncoderSetting(name=f"{rule}, {share:g}", kept_tokens=wish.schedule(spec))
                except UsageError:  # ToMe merges at most half of a layer's tokens: so little work it can't leave
                    continue
                yield Case(weights, rule, "schedule", share, Asked(pipeline, wish), setting)
            if rule == "madtp":
                yield from _counted(folder, pipeline, data)


def _counted(folder: Path, pipeline: Pipeline, data: str) -> Iterator[Case]:
    dynamic = Pipeline.load(folder / "madtp-dynamic", verify=False)
    questions = list(half(open_data(data).subset(200, None, SEED), SEED, "search"))
    for share in SHARES:
        found = find_schedule(dynamic, questions, share, 60)
        setting = EncoderSetting(name=f"dynamic, {share:g}", temperature=found.temperature)
        wish = EncoderWish(temperature=found.temperature)
        yield Case("madtp", "madtp", "dynamic", share, Asked(dynamic, wish), setting)
        setting = EncoderSetting(name=f"counted, {share:g}", kept_tokens=found.kept_tokens)
        wish = EncoderWish(kept_tokens=found.kept_tokens)
        yield Case("madtp", "madtp", "counted", share, Asked(pipeline, wish), setting)


def times(cases: list[Case], pixels: np.ndarray, rounds: int) -> list[list[float]]:
    """Seconds of the encoder for one picture, interleaved, by case."""
    seconds: list[list[float]] = [[] for _ in cases]
    order = np.random.default_rng(0)
    for number in range(rounds + 1):
        for place in order.permutation(len(cases)):
            asked = cases[place].asked
            started = time.perf_counter()
            asked.pipeline.encode(pixels, encoder=asked.wish)
            if number:
                seconds[place].append(time.perf_counter() - started)
    return seconds


def measure(folder: Path, questions: int, rounds: int) -> AccuracyTables:
    rows, counts = [], {}
    for data in DATA:
        asked = open_data(data).subset(2 * questions, None, SEED)
        cases = list(cases_of(folder, data))
        first = next(iter(asked))
        seconds = times(cases, cases[0].asked.pipeline.preprocess([first.image]), rounds)
        for weights in WEIGHTS:
            places = [place for place, case in enumerate(cases) if case.weights == weights]
            print(f"{data}: {weights}", flush=True)
            confirming = list(half(asked, SEED, "confirmation"))[:questions]
            answered = answer_all(confirming, [cases[place].asked for place in places], asked.metric, 8)
            counts[data] = len(answered.right)
            spec = next(found for place in places if (found := cases[place].asked.pipeline.manifest.encoder_pruning))
            settings = [cases[place].setting for place in places]
            for place, found in zip(places, score(answered, settings, spec.gflops_dense, SEED)):
                case, values = cases[place], seconds[place]
                rows.append(
                    AccuracyRow(
                        weights=weights,
                        rule=case.rule,
                        form=case.form,
                        asked_share=case.share,
                        data=data,
                        score=found,
                        encoder_ms=1e3 * float(np.median(values)),
                        times_as_fast=paired_ratio(seconds[places[0]], values, seed=0),
                    )
                )
    return AccuracyTables(machine=describe_machine(), questions=counts, rows=rows)


def table_rows(found: AccuracyTables, data: str) -> list[str]:
    """Lines of Markdown: accuracy in % with its 95 % interval, by rule and share of the work."""
    shares = (1.0, *SHARES)
    rows = [
        f"| weights | rule, form | {' | '.join(f'{share:.0%}' for share in shares)} |",
        "|---" * (2 + len(shares)) + "|",
    ]
    cells: dict[tuple[str, str], dict[float, str]] = {}
    for row in found.rows:
        if row.data == data:
            name = "dense" if row.form == "dense" else f"{row.rule}, {row.form}"
            low, high = row.score.interval_95
            text = f"{100 * row.score.accuracy:.1f} ({100 * low:.1f} to {100 * high:.1f})"
            cells.setdefault((row.weights, name), {})[row.asked_share] = text
    for (weights, name), by_share in cells.items():
        rows.append(f"| {weights} | {name} | {' | '.join(by_share.get(share, '') for share in shares)} |")
    return rows


def time_rows(found: AccuracyTables) -> list[str]:
    """Lines of Markdown: milliseconds of the encoder for one picture, and how many times as fast as dense."""
    shares = (1.0, *SHARES)
    rows = [
        f"| weights | rule, form | {' | '.join(f'{share:.0%}' for share in shares)} |",
        "|---" * (2 + len(shares)) + "|",
    ]
    cells: dict[tuple[str, str], dict[float, str]] = {}
    for row in found.rows:
        if row.data == DATA[0]:
            name = "dense" if row.form == "dense" else f"{row.rule}, {row.form}"
            faster = "" if row.form == "dense" else f" ({row.times_as_fast.median:.2f})"
            cells.setdefault((row.weights, name), {})[row.asked_share] = f"{row.encoder_ms:.1f}{faster}"
    for (weights, name), by_share in cells.items():
        rows.append(f"| {weights} | {name} | {' | '.join(by_share.get(share, '') for share in shares)} |")
    return rows


def main(
    folder: Annotated[Path, typer.Option(help="Where bundles are kept.")] = Path("build/encoder-accuracy"),
    questions: Annotated[int, typer.Option(min=20, help="Of each data set.")] = 500,
    rounds: Annotated[int, typer.Option(min=6, help="Of the timing.")] = 40,
    output: Annotated[Path, typer.Option("-o", "--output", help="The report.")] = RECORD,
    record: Annotated[Path | None, typer.Option(help="Print the tables of this report, and measure nothing.")] = None,
) -> None:
    """Measure accuracy of both checkpoints, with every rule, at every share of the work."""
    if record is None:
        export_all(folder)
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(measure(folder, questions, rounds).model_dump_json(indent=1) + "\n")
    found = AccuracyTables.model_validate_json((record or output).read_text())
    for data in DATA:
        print(f"\n{data}, {found.questions[data]} questions\n")
        print("\n".join(table_rows(found, data)))
    print("\nMilliseconds of the encoder for one picture (times as fast as dense)\n")
    print("\n".join(time_rows(found)))


if __name__ == "__main__":
    typer.run(main)
