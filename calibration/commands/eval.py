"""catp-eval: how much accuracy a bundle keeps at which pruning ratio."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, get_args

import typer
from rich.progress import Progress
from rich.table import Table

from catp.calibration.accuracy import Score, evaluate
from catp.export.demo import scenes
from catp.runtime.commands.console import console, make_app, print_json_line
from catp.runtime.engines import PROVIDERS
from catp.runtime.errors import UsageError
from catp.runtime.manifest import Positions
from catp.runtime.pipeline import Pipeline
from catp.runtime.pruning import check_ratio

DEMO_SEED = 2024
POSITIONS: tuple[Positions, ...] = get_args(Positions)


def evaluate_bundle(
    bundle: Annotated[Path, typer.Argument(help="Folder written by catp-export.")],
    data: Annotated[str, typer.Option(help="What to ask: demo (generated held-out scenes).")] = "demo",
    ratios: Annotated[str, typer.Option(help="Pruning ratios, separated by commas.")] = "0,0.25,0.5,0.75,0.9",
    limit: Annotated[int, typer.Option(min=1, help="Number of questions, each about another image.")] = 1000,
    seed: Annotated[int, typer.Option(help="Which questions: another seed, other scenes.")] = DEMO_SEED,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions at a time.")] = 8,
    provider: Annotated[str, typer.Option(help=f"What executes the graphs: {', '.join(PROVIDERS)}.")] = "cpu",
    json_output: Annotated[bool, typer.Option("--json", help="The scores as JSON on standard output.")] = False,
) -> None:
    """Measure exact-match accuracy over pruning ratios, in both position modes, through the exported graphs."""
    if data != "demo":
        raise UsageError(f"data {data!r}: unknown; accepted: demo")
    wanted = _parse_ratios(ratios)
    pipeline = Pipeline.load(bundle, provider)
    for ratio in wanted:
        pipeline.num_kept(ratio)
    examples = ((example.image, example.question) for example in scenes.examples(limit, seed))
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("questions", total=limit)
        scores = evaluate(pipeline, examples, wanted, POSITIONS, batch_size, lambda done: progress.advance(task, done))
    if json_output:
        print_json_line(json.dumps({"schema_version": 1, "data": data, "seed": seed, "scores": _to_json(scores)}))
    else:
        _print_table(scores)


def _parse_ratios(text: str) -> list[float]:
    try:
        ratios = [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"ratios {text!r}: give numbers separated by commas, such as 0,0.25,0.5") from None
    return [check_ratio(ratio) for ratio in dict.fromkeys(ratios)]


def _to_json(scores: Sequence[Score]) -> list[dict[str, object]]:
    return [
        {
            "ratio": score.ratio,
            "positions": score.positions,
            "num_kept": score.num_kept,
            "accuracy": score.accuracy,
            "interval_95": score.interval(),
            "questions": score.total,
        }
        for score in scores
    ]


def _print_table(scores: Sequence[Score]) -> None:
    table = Table(title=f"Exact match, {scores[0].total:,} held-out questions (95 % interval)", title_justify="left")
    table.add_column("ratio", justify="right")
    table.add_column("tokens kept", justify="right")
    for mode in POSITIONS:
        table.add_column(f"{mode} positions", justify="right")
    for ratio in dict.fromkeys(score.ratio for score in scores):
        row = {score.positions: score for score in scores if score.ratio == ratio}
        cells = []
        for mode in POSITIONS:
            low, high = row[mode].interval()
            cells.append(f"{100 * row[mode].accuracy:.1f} % ({100 * low:.1f} to {100 * high:.1f})")
        table.add_row(f"{ratio:g}", str(row[POSITIONS[0]].num_kept), *cells)
    console.print(table)


app = make_app(evaluate_bundle)
