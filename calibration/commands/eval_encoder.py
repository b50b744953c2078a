"""Settings of a vision encoder in catp-eval: read from its options, checked, and compared."""

from __future__ import annotations

from collections.abc import Sequence

from catp.calibration.accuracy.asking import Asking
from catp.calibration.commands.eval_screen import counted
from catp.calibration.data.dataset import DataSet
from catp.calibration.encoder.answering import Amount
from catp.calibration.encoder.evaluation import evaluate_encoder
from catp.calibration.encoder.report import EncoderReport
from catp.runtime.bundle.manifest import Manifest
from catp.runtime.errors import UsageError
from catp.runtime.image_sides.pruned_encoder import EncoderWish
from catp.runtime.pipeline import Pipeline

RATIOS = "0,0.25,0.5,0.75,0.9"
"""Ratios where none are given, and an example of such a list."""
OWN = "own"
"""In place of a temperature: the checkpoint's, or the bundle's."""


def parse_numbers(name: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        raise UsageError(f"{name} {text!r}: give numbers separated by commas, such as {RATIOS}") from None


def compare_shares(
    pipeline: Pipeline,
    asked: DataSet,
    wishes: Sequence[EncoderWish],
    amounts: Sequence[Amount],
    seed: int,
    batch_size: int,
    asking: Asking,
) -> EncoderReport:
    with counted() as advance:
        done = 0

        def more(count: int) -> None:
            nonlocal done
            done += count
            advance(done, len(asked))

        return evaluate_encoder(pipeline, asked, wishes, amounts, seed, batch_size, more, asking)


def encoder_wishes(shares: str | None, temperatures: str | None) -> list[EncoderWish]:
    """The encoder's settings that are compared, in their order; none where nothing was asked for.

    Raises:
        UsageError: both are given, or one is no list of numbers.
    """
    if shares is not None and temperatures is not None:
        raise UsageError(
            "--encoder-flops, --encoder-temperatures: an encoder keeps tokens by a schedule or counts them; give one"
        )
    if shares is not None:
        return [EncoderWish(flops=share) for share in parse_numbers("encoder flops", shares)]
    if temperatures is None:
        return []
    given = list(dict.fromkeys(part.strip() for part in temperatures.split(",")))
    return [
        EncoderWish() if part == OWN else EncoderWish(temperature=parse_numbers("encoder temperatures", part)[0])
        for part in given
    ]


def check_own(manifest: Manifest, wishes: Sequence[EncoderWish]) -> None:
    """Raises UsageError where its own temperature is asked of an encoder that has none."""
    spec = manifest.encoder_pruning
    if EncoderWish() in wishes and (spec is None or spec.form != "dynamic"):
        keeps = "prunes nothing" if spec is None else "keeps as many tokens as its schedule says"
        raise UsageError(
            f"--encoder-temperatures {OWN}: the vision encoder of this {manifest.model.family} {keeps}, and has "
            "no temperature; export with --encoder-form dynamic, or leave the option out"
        )


def inside(wishes: Sequence[EncoderWish], temperatures: str | None) -> tuple[float | None, bool]:
    """The pruning inside an encoder that is exported for this run: its first share, and whether it counts tokens."""
    return wishes[0].flops if wishes else None, temperatures is not None
