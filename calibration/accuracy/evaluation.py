"""The evaluation of a bundle on a data set: ask every question in every setting, then report."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from catp.calibration.accuracy.answering import in_batches
from catp.calibration.accuracy.asking import USUAL, Asking
from catp.calibration.accuracy.describing import with_cider
from catp.calibration.accuracy.judging import check_asking
from catp.calibration.accuracy.predictions import Evaluation, PredictionsFile
from catp.calibration.accuracy.report import AccuracyReport, make_report
from catp.calibration.accuracy.settings import Grid, check_methods
from catp.calibration.accuracy.workers import Work, Workers, make_answerer
from catp.calibration.data.dataset import DataSet
from catp.calibration.supported import writes_captions
from catp.runtime.bundle.manifest import MANIFEST_NAME
from catp.runtime.errors import CatpError
from catp.runtime.files import sha256
from catp.runtime.pipeline import Pipeline

BATCH_SIZE = 8


def evaluate(
    pipeline: Pipeline | Workers,
    data: DataSet,
    grid: Grid,
    *,
    seed: int = 0,
    limit: int | None = None,
    fraction: float | None = None,
    batch_size: int = BATCH_SIZE,
    engines: str | None = None,
    predictions: Path | None = None,
    asking: Asking = USUAL,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> AccuracyReport:
    """Ask the questions of a data set and report how right the answers are.

    Memory does not grow with the pictures or the answers, only by a number per question and setting.

    Args:
        pipeline: or workers, that answer as it does.
        data: of which at most `limit` questions, or that `fraction`, chosen by `seed`, are asked.
        grid: the settings.
        seed: also of random tokens and of the bootstrap.
        batch_size: rows per call of the language model, beams counted, and images per call of the vision encoder, at
            most.
        engines: the name that the pipeline was loaded with.
        predictions: a file that is written while questions are answered, and resumed if it has some already; None: a
            temporary one.
        asking: the prompts, and how tokens of answers are chosen; drawn ones are by `seed`.
        advance: called with the number of questions done so far, and of all.

    Raises:
        UsageError: an argument is out of range, the bundle has no scores of a method or generates nothing that `asking`
            is about, or `predictions` is the file of another evaluation.
        CatpError: no question could be asked, or `predictions` can't be written.
    """
    check_methods(pipeline.manifest, grid.methods)
    check_asking(pipeline.manifest, asking)
    asked = data.subset(limit, fraction, seed)
    evaluation = Evaluation(
        bundle=sha256(pipeline.bundle.path / MANIFEST_NAME),
        provider=pipeline.provider if isinstance(pipeline, Workers) else pipeline.provider.name,
        engines=engines,
        data=asked.name,
        metric=asked.metric,
        limit=limit,
        fraction=fraction,
        seed=seed,
        questions=len(asked),
        digest=asked.digest(),
        methods=grid.methods,
        ratios=grid.ratios,
        keep_masses=grid.keep_masses,
        positions=grid.positions,
        prompt_template=asking.in_full(pipeline.manifest),
        generation=asking.generation,
        max_new_tokens=asking.max_new_tokens,
        answers=asking.answers_digest,
    )
    with tempfile.TemporaryDirectory(prefix="catp-eval-") as folder:
        file = PredictionsFile(predictions or Path(folder) / "predictions.jsonl", evaluation)
        work = Work(grid.settings(), asked.metric, seed, batch_size, asking)
        done, batches = file.resume(in_batches(asked, batch_size))
        advance(done, len(asked))
        answered = (
            pipeline.answers(work, batches)
            if isinstance(pipeline, Workers)
            else map(make_answerer(pipeline, work).answer, batches)
        )
        for predictions_of_batch in answered:
            file.append(predictions_of_batch)
            done += len(predictions_of_batch)
            advance(done, len(asked))
        report = make_report(evaluation, file, pipeline.manifest)
        if not report.questions:
            file.clear()  # what was wrong with the images may be put right
            raise CatpError(
                f"data {asked.name}: none of {len(asked):,} questions could be asked; the first: "
                f"{report.skipped_first[0].reason}"
            )
        if writes_captions(pipeline.manifest):
            report = with_cider(report, file, asked)
    return report
