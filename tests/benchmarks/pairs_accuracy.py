"""The accuracy table of statements about two images in docs: `python tests/benchmarks/pairs_accuracy.py`.

The small BLIP for two pictures, which was trained dense, is exported with every rule; each bundle judges the same
statements about held-out pairs, a statement each, with schedules that leave 80, 50 and 20 % of the encoder's work. The
report is kept as JSON in export/demo/nlvr/accuracy/; `--record FILE` only prints the table of one.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel

from catp.calibration.data.demo_pairs import DemoPairs
from catp.calibration.encoder.answering import Asked, answer_all
from catp.calibration.encoder.report import EncoderScore, EncoderSetting, score
from catp.export.demo.nlvr import CHECKPOINT
from catp.export.demo.nlvr.pool import Pool
from catp.export.exporter import export_bundle
from catp.export.image_encoders.plan import EncoderOptions
from catp.runtime.errors import UsageError
from catp.runtime.image_sides.pruned_encoder import EncoderWish
from catp.runtime.pipeline import Pipeline

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "export" / "demo" / "nlvr" / "accuracy" / "encoder-pruning.json"
SHARES = (0.8, 0.5, 0.2)
RULES = ("tome", "self-cls", "cls", "random")
SEED = 2024
SEEN = 20_000
"""Statements about training pairs from which the answer by the words alone is learnt."""


class PairsRow(BaseModel):
    """One setting."""

    rule: str
    merge: str | None  # of its dropped tokens; None: nothing is dropped
    asked_share: float
    score: EncoderScore


class PairsReport(BaseModel):
    """All settings on the same statements."""

    statements: int
    by_words_alone: float  # share that is right of the more frequent answer to the same words in training
    rows: list[PairsRow]


def measure(folder: Path, count: int) -> PairsReport:
    options = {"dense": EncoderOptions(), **{rule: EncoderOptions(rule, 0.5) for rule in RULES}}
    for name, asked in options.items():
        if not (folder / name).is_dir():
            print(f"export {name}", flush=True)
            export_bundle(str(CHECKPOINT), folder / name, encoder=asked)
    dense = Pipeline.load(folder / "dense", verify=False)
    settings, found = [Asked(dense, EncoderWish())], [("dense", None, 1.0, EncoderSetting(name="dense"))]
    for rule in RULES:
        pipeline = Pipeline.load(folder / rule, verify=False)
        spec = pipeline.manifest.encoder_pruning
        assert spec is not None
        for share in SHARES:
            wish = EncoderWish(flops=share)
            try:
                setting = EncoderSetting(name=f"{rule}, {share:g}", kept_tokens=wish.schedule(spec))
            except UsageError:  # some rules can't leave so little work
                continue
            settings.append(Asked(pipeline, wish))
            found.append((rule, spec.merge, share, setting))
    data = DemoPairs(count, SEED)
    print(f"{len(settings)} settings", flush=True)
    answered = answer_all(data, settings, data.metric, 16)
    scores = score(answered, [setting for *_, setting in found], spec.gflops_dense, SEED)
    return PairsReport(
        statements=len(answered.right),
        by_words_alone=_by_words(data),
        rows=[
            PairsRow(rule=rule, merge=merge, asked_share=share, score=one)
            for (rule, merge, share, _), one in zip(found, scores)
        ],
    )


def _by_words(data: DemoPairs) -> float:
    """Accuracy without looking: the more frequent answer to each statement in training; false where it is new."""
    pool = Pool(4000, 0, "train")
    lean: Counter[str] = Counter()
    for _ in range(SEEN):
        _, (said,) = pool.draw(1)
        lean[said.text] += 1 if said.truth else -1
    right = [(lean[question.question] > 0) == (question.answers == ("true",)) for question in data]
    return sum(right) / len(right)


def table_rows(found: PairsReport) -> list[str]:
    """Lines of Markdown: accuracy in %, and the 95 % interval of the paired difference to the dense encoder."""
    shares = (1.0, *SHARES)
    rows = [
        f"| rule | merge | {' | '.join(f'{share:.0%}' for share in shares)} |",
        "|---" * (2 + len(shares)) + "|",
    ]
    cells: dict[tuple[str, str], dict[float, str]] = {}
    for row in found.rows:
        if row.rule == "dense":
            low, high = row.score.interval_95
            text = f"{100 * row.score.accuracy:.1f} ({100 * low:.1f} to {100 * high:.1f})"
        else:
            low, high = row.score.difference_95
            text = f"{100 * row.score.accuracy:.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
        cells.setdefault((row.rule, row.merge or ""), {})[row.asked_share] = text
    for (rule, merge), by_share in cells.items():
        rows.append(f"| {rule} | {merge} | {' | '.join(by_share.get(share, '') for share in shares)} |")
    return rows


def main(
    folder: Annotated[Path, typer.Option(help="Where bundles are kept.")] = Path("build/pairs-accuracy"),
    statements: Annotated[int, typer.Option(min=20, help="How many.")] = 700,
    output: Annotated[Path, typer.Option("-o", "--output", help="The report.")] = RECORD,
    record: Annotated[Path | None, typer.Option(help="Print the table of this report, and measure nothing.")] = None,
) -> None:
    """Measure accuracy with every rule, at every share of the work."""
    if record is None:
        report = measure(folder, statements)
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(report.model_dump_json(indent=1) + "\n")
    found = PairsReport.model_validate_json((record or output).read_text())
    print(f"\n{found.statements} statements; by their words alone {found.by_words_alone:.1%} are right\n")
    print("\n".join(table_rows(found)))


if __name__ == "__main__":
    typer.run(main)
