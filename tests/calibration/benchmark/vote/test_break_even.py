"""From where on pruning pays: hand-worked cases, and thresholds that are the smallest that hold."""

from dataclasses import replace
from pathlib import Path

import pytest

from catp.calibration.benchmark.costs.base import Workload
from catp.calibration.benchmark.costs.cost import language_flops, matrix_weights
from catp.calibration.benchmark.costs.geometry import LanguageGeometry, read_geometry
from catp.calibration.benchmark.timing.intervals import MedianDifference, median_difference
from catp.calibration.benchmark.vote.break_even import (
    PrefillModel,
    Speed,
    scaled,
    thresholds,
    verdict,
    vote_at,
)
from catp.runtime.bundle.folder import open_bundle

LANGUAGE = LanguageGeometry(
    layers=2, width=4, feed_forward=8, heads=2, key_value_heads=1, head_width=2, vocabulary=10, gated=False, tied=True,
    positions=0,
)  # fmt: skip
PRUNED = Workload(batch=2, num_kept=16, prompt_tokens=16, new_tokens=10)
QUERIES = 32
ARITHMETIC, TRAFFIC = Speed(1e9, 1e18), Speed(1e18, 1e9)


@pytest.fixture(scope="module")
def model(demo_bundle: Path) -> PrefillModel:
    bundle = open_bundle(demo_bundle, verify=False)
    return PrefillModel(read_geometry(bundle).language, bundle.manifest.graphs["language_model"])


def test_weights_by_hand() -> None:
    attention = 4 * (4 + 2 + 2 + 4)  # q, k, v, out; one key-value head of two
    assert matrix_weights(LANGUAGE) == 2 * (attention + 2 * 4 * 8) + 4 * 10  # two layers and the head


def test_a_larger_model_keeps_its_proportions() -> None:
    found = scaled(LANGUAGE, 6)
    assert (found.layers, found.width, found.feed_forward, found.heads, found.key_value_heads) == (6, 12, 24, 6, 3)
    assert (found.head_width, found.vocabulary) == (2, 10) and scaled(LANGUAGE, 2) == LANGUAGE


def test_what_prefill_saves_by_hand(model: PrefillModel) -> None:
    own = model.language
    flops = 2 * (language_flops(own, 48, 48) - language_flops(own, 32, 32))
    assert model.saved_ms(own, QUERIES, PRUNED, ARITHMETIC) == pytest.approx(1e3 * flops / 1e9)
    # Where memory is the limit, weights are read either way: only 16 tokens of prefix and cache are not.
    traffic = 2 * 16 * 4 * (own.width + 2 * own.layers * own.width)
    assert model.saved_ms(own, QUERIES, PRUNED, TRAFFIC) == pytest.approx(1e3 * traffic / 1e9)
    assert model.saved_ms(own, QUERIES, replace(PRUNED, num_kept=32), ARITHMETIC) == 0


def test_the_vote_of_other_batches() -> None:
    timed = {1: 2.0, 4: 4.0}  # per image 2 ms and 1 ms
    assert [vote_at(batch, timed) for batch in (1, 2, 4, 8)] == pytest.approx([2, 2 * (2 - 1 / 3), 4, 8])
    assert vote_at(3, {1: 2.0}) == 6


@pytest.mark.parametrize("speed", [ARITHMETIC, Speed(2e11, 2e10), Speed(1e12, 1e9)])
def test_thresholds_are_the_smallest_that_pay(model: PrefillModel, speed: Speed) -> None:
    own, votes = model.language, {2: 1.5 * model.saved_ms(model.language, QUERIES, PRUNED, speed), 8: 0.01}
    found = thresholds(model, QUERIES, PRUNED, votes, 100, speed)

    def pays(layers: int = own.layers, **changed: int) -> bool:
        workload = replace(PRUNED, **changed)
        return model.saved_ms(scaled(own, layers), QUERIES, workload, speed) > vote_at(workload.batch, votes)

    assert not pays()
    assert found.layers is not None and pays(found.layers) and not pays(found.layers - 1)
    assert found.matrix_weights == matrix_weights(scaled(own, found.layers))
    assert found.batch is not None and pays(batch=found.batch) and not pays(batch=found.batch - 1)
    assert found.prompt_tokens is None or pays(prompt_tokens=found.prompt_tokens)


def test_where_nothing_pays_none_is_said(model: PrefillModel) -> None:
    found = thresholds(model, QUERIES, PRUNED, {2: 1e30}, 100, ARITHMETIC)
    assert set(found.model_dump().values()) == {None}


@pytest.mark.parametrize(
    ("vote", "saved", "expected"),
    [((1, 2), (3, 4), "yes"), ((3, 4), (1, 2), "no"), ((1, 3), (2, 4), "unclear"), (None, (3, 4), "unclear")],
)
def test_verdicts(vote: tuple[float, float] | None, saved: tuple[float, float], expected: str) -> None:
    assert (
        verdict(MedianDifference(median=1.5, interval_95=vote), MedianDifference(median=3, interval_95=saved))
        == expected
    )


def test_differences_are_of_pairs() -> None:
    drift = [float(10 * round) for round in range(1, 21)]
    found = median_difference([value + 3 for value in drift], drift, seed=0)
    assert found == MedianDifference(median=3, interval_95=(3, 3)) and found.bounds == (3, 3)
    assert median_difference([5.0], [1.0], seed=0) == MedianDifference(median=4, interval_95=None)
    with pytest.raises(ValueError, match="as many of both"):
        median_difference([1.0], [], seed=0)
