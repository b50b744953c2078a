"""Accuracy of one bundle at several settings of its vision encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from catp.calibration.data.dataset import DataSet
from catp.calibration.encoder.answering import Asked, answer_all, check_encoder
from catp.calibration.encoder.report import EncoderReport, EncoderSetting, make_report
from catp.runtime.image_sides.pruned_encoder import EncoderWish
from catp.runtime.pipeline import Pipeline


def evaluate_encoder(
    pipeline: Pipeline,
    asked: DataSet,
    wishes: Sequence[EncoderWish],
    seed: int,
    batch_size: int,
    advance: Callable[[int], None],
) -> EncoderReport:
    """Every question with every wish; the first one is what the others are compared with.

    Args:
        seed: of the intervals.
        advance: called with the number of questions just done.

    Raises:
        UsageError: the bundle's encoder prunes nothing, or can't keep what is asked.
        CatpError: no question could be asked.
    """
    check_encoder(pipeline, "catp-eval")
    spec = pipeline.manifest.encoder_pruning
    assert spec is not None
    settings = []
    for wish in wishes:
        wish.inputs(spec, pipeline.manifest.model.family)  # refuses before any work
        if spec.form == "dynamic":
            temperature = spec.temperature if wish.temperature is None else wish.temperature
            settings.append(EncoderSetting(name=f"temperature {temperature:g}", temperature=temperature))
        else:
            name = "schedule" if wish.flops is None else f"schedule, {wish.flops:g} of the work"
            settings.append(EncoderSetting(name=name, kept_tokens=wish.schedule(spec)))
    answered = answer_all(asked, [Asked(pipeline, wish) for wish in wishes], asked.metric, batch_size, advance)
    return make_report(pipeline.manifest, asked, seed, settings, answered)
