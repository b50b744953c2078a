"""The prefill of an encoder-decoder model: its two passes are the cost model's, and it grows as sizes do."""

from dataclasses import replace
from pathlib import Path

import pytest

from catp.calibration.benchmark.costs.base import Workload
from catp.calibration.benchmark.costs.cost import cost_of
from catp.calibration.benchmark.costs.encoder_decoder import cache_bytes_per_token, encoder_flops
from catp.calibration.benchmark.costs.geometry import EncoderDecoderGeometry, read_geometry
from catp.calibration.benchmark.vote.break_even import Speed, thresholds
from catp.calibration.benchmark.vote.encoder_prefill import EncoderPrefillModel
from catp.runtime.bundle.folder import open_bundle

QUERIES = 24
PRUNED = Workload(batch=2, num_kept=12, prompt_tokens=16, new_tokens=10)
ARITHMETIC = Speed(1e6, 1e30)
"""Traffic costs nothing."""


@pytest.fixture
def model(t5_bundle: Path) -> EncoderPrefillModel:
    bundle = open_bundle(t5_bundle, verify=False)
    language, graphs = read_geometry(bundle).language, bundle.manifest.graphs
    assert isinstance(language, EncoderDecoderGeometry)
    return EncoderPrefillModel(language, graphs["text_encoder"], graphs["text_decoder"])


def test_both_passes_are_the_prefill(model: EncoderPrefillModel, t5_bundle: Path) -> None:
    bundle = open_bundle(t5_bundle, verify=False)
    whole = cost_of(bundle.manifest, read_geometry(bundle), PRUNED, 0.5).stages["prefill"]
    encoder, step = model.passes(model.language, PRUNED)
    assert encoder.flops + step.flops == whole.flops
    # What cross-attention reads is written by one pass and read by the other.
    again = 2 * 28 * cache_bytes_per_token(model.language, model.decoder)
    assert encoder.bytes + step.bytes == whole.bytes + again


def test_what_is_saved_by_hand(model: EncoderPrefillModel) -> None:
    own = model.language
    fewer = encoder_flops(own, 40) - encoder_flops(own, 28)
    step = 2 * 2 * (2 * 12 * 30)  # two decoder layers attend to 12 fewer tokens, by scores and by values
    assert model.saved_ms(own, QUERIES, PRUNED, ARITHMETIC) == pytest.approx(2 * (fewer + step) / 1e3)
    assert model.saved_ms(own, QUERIES, replace(PRUNED, num_kept=QUERIES), ARITHMETIC) == 0


def test_larger_ones_are_alike(model: EncoderPrefillModel) -> None:
    own = model.language
    assert model.scaled(own.encoder_layers) == own
    larger = model.scaled(3 * own.encoder_layers)
    assert (larger.encoder_layers, larger.decoder_layers, larger.width) == (3, 6, 108)
    assert (larger.head_width, larger.vocabulary) == (own.head_width, own.vocabulary)
    # 4 matrices of 36 x 30 and 3 of 36 x 52 in each of 3 layers; 4 more in each of 2 decoder layers; the head.
    assert model.matrix_weights(own) == 3 * (4 * 36 * 30 + 3 * 36 * 52) + 2 * 4 * 36 * 30 + 384 * 36


def test_thresholds_are_the_smallest_that_pay(model: EncoderPrefillModel) -> None:
    own = model.language
    saved = model.saved_ms(model.scaled(4), QUERIES, PRUNED, ARITHMETIC)
    found = thresholds(model, QUERIES, PRUNED, {2: saved * 0.999}, 100, ARITHMETIC)
    assert found.layers == 4 and found.matrix_weights == model.matrix_weights(model.scaled(4))
    assert model.saved_ms(model.scaled(3), QUERIES, PRUNED, ARITHMETIC) < saved * 0.999
    cheap = thresholds(
        model, QUERIES, PRUNED, {2: model.saved_ms(own, QUERIES, PRUNED, ARITHMETIC) / 2}, 100, ARITHMETIC
    )
    assert (cheap.layers, cheap.batch) == (1, 1)
