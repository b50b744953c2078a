"""Accuracy of one bundle at several settings of its vision encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from catp.calibration.accuracy.asking import USUAL, Asking
from catp.calibration.accuracy.describing import caption_scores
from catp.calibration.accuracy.judging import check_asking
from catp.calibration.data.dataset import DataSet
from catp.calibration.data.fitting import judges_pairs
from catp.calibration.encoder.answering import Amount, Answered, Asked, answer_all, check_encoder
from catp.calibration.encoder.costs import answers_gflops
from catp.calibration.encoder.report import EncoderReport, EncoderSetting, make_report
from catp.calibration.supported import writes_captions
from catp.runtime.bundle.manifest import Manifest
from catp.runtime.image_sides.pruned_encoder import EncoderWish
from catp.runtime.pipeline import Pipeline


def evaluate_encoder(
    pipeline: Pipeline,
    asked: DataSet,
    wishes: Sequence[EncoderWish],
    amounts: Sequence[Amount],
    seed: int,
    batch_size: int,
    advance: Callable[[int], None],
    asking: Asking = USUAL,
) -> EncoderReport:
    """Every question with every wish and every amount of query tokens; all are compared with the first of both.

    Args:
        amounts: of query tokens; `[Amount()]`: the bundle's own, or none where nothing votes.
        seed: of the intervals, and of what is drawn.
        advance: called with the number of questions just done.
        asking: the prompts, and how tokens of answers are chosen.

    Raises:
        UsageError: the bundle's encoder prunes nothing, or it or the vote can't keep what is asked.
        CatpError: no question could be asked.
    """
    check_encoder(pipeline, "catp-eval")
    check_asking(pipeline.manifest, asking)
    spec = pipeline.manifest.encoder_pruning
    assert spec is not None
    amounts = [_in_full(pipeline.manifest, amount) for amount in amounts]
    for amount in amounts:  # refuses before any work
        pipeline.num_kept(amount.ratio)
        pipeline.image_side.check_mass(amount.keep_mass)
    encoders = []
    for wish in wishes:
        wish.inputs(spec, pipeline.manifest.model.family)  # refuses before any work
        if spec.form == "dynamic":
            temperature = spec.temperature if wish.temperature is None else wish.temperature
            encoders.append(EncoderSetting(name=f"temperature {temperature:g}", temperature=temperature))
        else:
            name = "schedule" if wish.flops is None else f"schedule, {wish.flops:g} of the work"
            encoders.append(EncoderSetting(name=name, kept_tokens=wish.schedule(spec)))
    settings = [
        encoder.model_copy(update={"ratio": amount.ratio, "keep_mass": amount.keep_mass})
        for encoder in encoders
        for amount in amounts
    ]
    combined = [Asked(pipeline, wish, amount.ratio, amount.keep_mass) for wish in wishes for amount in amounts]
    answered = answer_all(asked, combined, asked.metric, batch_size, advance, asking, seed)
    report = make_report(pipeline.manifest, asked, seed, settings, answered, answers_gflops(pipeline, answered))
    if writes_captions(pipeline.manifest):
        report = _with_cider(report, answered)
    if judges_pairs(pipeline.manifest):
        return report
    protocol = {
        "prompt_template": asking.in_full(pipeline.manifest),
        "generation": asking.generation,
        "max_new_tokens": asking.max_new_tokens,
        "answers": asking.answers_digest,
    }
    return report.model_copy(update=protocol)


def _with_cider(report: EncoderReport, answered: Answered) -> EncoderReport:
    """The report, with CIDEr-D of each setting."""
    found = caption_scores(answered.questions, list(zip(*answered.texts)), report.seed)
    scores = [
        score.model_copy(update={"cider": mean, "cider_interval_95": interval})
        for score, (mean, interval) in zip(report.scores, found, strict=True)
    ]
    return report.model_copy(update={"scores": tuple(scores)})


def _in_full(manifest: Manifest, amount: Amount) -> Amount:
    """The amount itself, or the bundle's own where it says nothing."""
    if amount != Amount() or (vote := manifest.vote) is None:
        return amount
    return Amount(keep_mass=vote.keep_mass) if vote.keep_mass is not None else Amount(vote.ratio)
