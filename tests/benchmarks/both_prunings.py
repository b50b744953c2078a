"""The tables of docs/encoder-pruning.md about BLIP-2: `python tests/benchmarks/both_prunings.py`.

The second demo, of 144 patches, is exported with every rule and some other merges. Each bundle answers the same
questions about held-out scenes and about easy-vqa's test pictures, with schedules that leave 80 to 20 % of the vision
encoder's work, with all query tokens and with half of them by `coverage`, which votes after the pruned encoder. Beside
each accuracy stands how alike the kept query tokens are to those of the dense encoder, and the time of the encoder for
one picture, interleaved. The report is kept as JSON in export/demo/fine/accuracy/; `--record FILE` only prints the
tables of one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from pydantic import BaseModel

from catp.calibration.accuracy.statistics import mean_difference, wilson_interval
from catp.calibration.benchmark.machine import Machine, describe_machine
from catp.calibration.benchmark.timing.intervals import Ratio, paired_ratio
from catp.calibration.data import open_data
from catp.calibration.data.dataset import VqaExample
from catp.calibration.data.halves import half
from catp.calibration.data.metrics import JUDGES
from catp.export.demo.fine import CHECKPOINT
from catp.export.exporter import export_bundle
from catp.export.image_encoders.plan import EncoderOptions
from catp.runtime.bundle.encoder_pruning import Merge
from catp.runtime.errors import UsageError
from catp.runtime.image_sides.pruned_encoder import EncoderWish
from catp.runtime.pipeline import Pipeline
from catp.runtime.providers.base import to_host

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "export" / "demo" / "fine" / "accuracy" / "both-prunings.json"
SHARES = (0.8, 0.65, 0.5, 0.35, 0.2)
RATIO = 0.5
DATA = ("demo", "easy-vqa")
SEED = 2024
BATCH = 16
BUNDLES: tuple[tuple[str, Merge], ...] = (
    ("taught", "nearest"), ("norm", "nearest"), ("tome", "nearest"), ("pitome", "nearest"), ("cls", "nearest"),
    ("self-cls", "one"), ("random", "one"), ("taught", "drop"), ("norm", "drop"), ("cls", "one"), ("random", "nearest"),
)  # fmt: skip
"""Rules with their merges; first each rule's own, then others."""


class BothRow(BaseModel):
    """One setting of both prunings on one data set."""

    rule: str  # none: the dense encoder
    merge: str
    asked_share: float
    share: float  # of the dense encoder's work
    ratio: float
    data: str
    accuracy: float
    interval_95: tuple[float, float]
    difference: float  # to the dense encoder with all query tokens, paired by question
    difference_95: tuple[float, float]
    kept_overlap: float | None  # share of the kept query tokens that the dense encoder's vote keeps too
    encoder_ms: float  # median, one picture
    times_as_fast: Ratio  # as the dense encoder


class BothTables(BaseModel):
    """Everything that was measured, with the machine."""

    machine: Machine
    questions: dict[str, int]
    rows: list[BothRow]


@dataclass
class Case:
    """A setting of the encoder, with the pipeline that runs it, and what came out."""

    rule: str
    merge: str
    share: float
    pipeline: Pipeline
    wish: EncoderWish
    right: dict[float, list[float]] = field(default_factory=lambda: {0.0: [], RATIO: []})
    kept: list[np.ndarray] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def work(self) -> float:
        """Share of the dense encoder's."""
        spec = self.pipeline.manifest.encoder_pruning
        return 1.0 if spec is None else spec.gflops(self.wish.schedule(spec)) / spec.gflops_dense


def export_all(folder: Path) -> None:
    """Bundles in `folder`, as far as they are not there."""
    wanted = {"dense": EncoderOptions()}
    wanted |= {f"{rule}-{merge}": EncoderOptions(rule=rule, merge=merge, flops=0.65) for rule, merge in BUNDLES}
    for name, options in wanted.items():
        if not (folder / name).is_dir():
            print(f"export {folder / name}", flush=True)
            export_bundle(str(CHECKPOINT), folder / name, method="coverage", ratio=RATIO, encoder=options)


def cases_of(folder: Path) -> Iterator[Case]:
    """All settings, the dense one first."""
    yield Case("none", "", 1.0, Pipeline.load(folder / "dense", verify=False), EncoderWish())
    for rule, merge in BUNDLES:
        pipeline = Pipeline.load(folder / f"{rule}-{merge}", verify=False)
        spec = pipeline.manifest.encoder_pruning
        assert spec is not None
        for share in SHARES:
            wish = EncoderWish(flops=share)
            try:
                wish.schedule(spec)
            except (
                UsageError
            ):  # of rules that merge pairs, at most half of a layer's tokens: so little they can't leave
                continue
            yield Case(rule, merge, share, pipeline, wish)


def answer(case: Case, questions: Sequence[VqaExample], pixels: np.ndarray, judge: str) -> None:
    """Ask one batch, after all query tokens and after half of them."""
    pipeline = case.pipeline
    encoded = pipeline.encode(pixels, encoder=case.wish)
    prompts = [pipeline.tokenize(question.prompt) for question in questions]
    for ratio, right in case.right.items():
        pruned = pipeline.prune(encoded, pipeline.num_kept(ratio))
        if ratio:
            case.kept += list(np.sort(to_host(pruned.kept_indices), 1))
        texts = [pipeline.detokenize(ids) for ids in pipeline.decode(pruned, prompts).token_ids]
        right += [JUDGES[judge](text, question.answers) for text, question in zip(texts, questions)]  # type: ignore[index]


def time_encoders(cases: Sequence[Case], pixels: np.ndarray, rounds: int) -> None:
    """Seconds of the encoder for one picture, interleaved."""
    order = np.random.default_rng(0)
    for number in range(rounds + 1):
        for place in order.permutation(len(cases)):
            case = cases[place]
            started = time.perf_counter()
            case.pipeline.image_side.see(pixels, case.wish)  # type: ignore[attr-defined]
            if number:
                case.seconds.append(time.perf_counter() - started)


def measure(folder: Path, count: int, rounds: int) -> BothTables:
    rows, counts = [], {}
    for data in DATA:
        asked = open_data(data)
        seen: set[str] = set()
        questions = []
        for question in half(asked, SEED, "confirmation"):  # the half that the scorer was not taught on
            if question.image_key not in seen and len(questions) < count:
                seen.add(question.image_key)
                questions.append(question)
        cases = list(cases_of(folder))
        first = cases[0].pipeline
        for start in range(0, len(questions), BATCH):
            batch = questions[start : start + BATCH]
            pixels = first.preprocess([question.image for question in batch])
            for case in cases:
                answer(case, batch, pixels, asked.metric)
            print(f"{data}: {start + len(batch)} of {len(questions)}", flush=True)
        time_encoders(cases, first.preprocess([questions[0].image]), rounds)
        counts[data] = len(questions)
        rows += [row for case in cases for row in _rows(case, cases[0], data)]
    return BothTables(machine=describe_machine(), questions=counts, rows=rows)


def _rows(case: Case, dense: Case, data: str) -> Iterator[BothRow]:
    base = np.array(dense.right[0.0])
    alike = float(np.mean([len(np.intersect1d(a, b)) / len(a) for a, b in zip(dense.kept, case.kept)]))
    for ratio, right in case.right.items():
        found = np.array(right)
        difference = mean_difference(found, base, SEED)
        yield BothRow(
            rule=case.rule,
            merge=case.merge,
            asked_share=case.share,
            share=case.work,
            ratio=ratio,
            data=data,
            accuracy=float(found.mean()),
            interval_95=wilson_interval(float(found.sum()), len(found)),
            difference=difference.mean,
            difference_95=(difference.low, difference.high),
            kept_overlap=alike if ratio else None,
            encoder_ms=1e3 * float(np.median(case.seconds)),
            times_as_fast=paired_ratio(dense.seconds, case.seconds, seed=0),
        )


def table_rows(found: BothTables, data: str, ratio: float) -> list[str]:
    """Lines of Markdown: accuracy in %, and the paired difference to the dense encoder with all query tokens."""
    shares = (1.0, *SHARES)
    rows = [
        f"| rule | merge | {' | '.join(f'{share:.0%}' for share in shares)} |",
        "|---" * (2 + len(shares)) + "|",
    ]
    cells: dict[tuple[str, str], dict[float, str]] = {}
    for row in found.rows:
        if (row.data, row.ratio) == (data, ratio):
            low, high = (100 * end for end in row.difference_95)
            change = "" if row.rule == "none" and not ratio else f" ({low:+.1f} to {high:+.1f})"
            cells.setdefault((row.rule, row.merge), {})[row.asked_share] = f"{100 * row.accuracy:.1f}{change}"
    for (rule, merge), by_share in cells.items():
        name = "dense" if rule == "none" else rule
        rows.append(f"| {name} | {merge} | {' | '.join(by_share.get(share, '') for share in shares)} |")
    return rows


def overlap_rows(found: BothTables, data: str) -> list[str]:
    """Lines of Markdown: kept query tokens in % that the dense encoder's vote keeps too, and how many times as fast."""
    rows = [
        f"| rule | merge | {' | '.join(f'{share:.0%}' for share in SHARES)} |",
        "|---" * (2 + len(SHARES)) + "|",
    ]
    cells: dict[tuple[str, str], dict[float, str]] = {}
    for row in found.rows:
        if row.data == data and row.ratio and row.rule != "none" and row.kept_overlap is not None:
            text = f"{100 * row.kept_overlap:.0f} ({row.times_as_fast.median:.2f})"
            cells.setdefault((row.rule, row.merge), {})[row.asked_share] = text
    for (rule, merge), by_share in cells.items():
        rows.append(f"| {rule} | {merge} | {' | '.join(by_share.get(share, '') for share in SHARES)} |")
    return rows


def main(
    folder: Annotated[Path, typer.Option(help="Where bundles are kept.")] = Path("build/both-prunings"),
    questions: Annotated[int, typer.Option(min=16, help="Of each data set, one a picture.")] = 400,
    rounds: Annotated[int, typer.Option(min=6, help="Of the timing.")] = 40,
    output: Annotated[Path, typer.Option("-o", "--output", help="The report.")] = RECORD,
    record: Annotated[Path | None, typer.Option(help="Print the tables of this report, and measure nothing.")] = None,
) -> None:
    """Measure accuracy with both prunings, by every rule, at every share of the work."""
    if record is None:
        export_all(folder)
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(measure(folder, questions, rounds).model_dump_json(indent=1) + "\n")
    found = BothTables.model_validate_json((record or output).read_text())
    for data in DATA:
        for ratio, words in ((0.0, "all query tokens"), (RATIO, "half of the query tokens, by coverage")):
            print(f"\n{data}, {found.questions[data]} questions, {words}\n")
            print("\n".join(table_rows(found, data, ratio)))
    print("\nKept query tokens that the dense encoder's vote keeps too, in % (times as fast as the dense encoder)\n")
    print("\n".join(overlap_rows(found, DATA[0])))


if __name__ == "__main__":
    typer.run(main)
