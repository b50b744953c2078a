"""Every voting method against slow and obvious numpy."""

from typing import Any

import numpy as np
import pytest
import torch
from references import (
    count_points,
    cover_greedily,
    pivoted_lengths,
    probability_points,
    received,
    weigh_points,
)

from catp.export.verification.reference import count_votes, rank_points
from catp.export.voting import METHODS, make_method
from catp.export.voting.base import Evidence
from catp.runtime import UsageError


def evidence(queries: int = 12, layers: int = 3, batch: int = 2, tokens: int = 11, seed: int = 0) -> Evidence:
    """Peaked attention, as trained models have it."""
    rng = np.random.default_rng(seed)

    def softmax(*shape: int) -> torch.Tensor:
        return torch.softmax(torch.from_numpy(rng.normal(0, 2, shape).astype(np.float32)), -1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.normal(0, 1, shape).astype(np.float32))

    return Evidence(
        cross_attention=[softmax(batch, 4, queries, tokens) for _ in range(layers)],
        self_attention=[softmax(1, 4, queries, queries), softmax(batch, 4, queries, queries)],
        query_embeds=normal(batch, queries, 16),
        image_embeds=normal(batch, tokens, 8),
        image_weights=softmax(batch, tokens) * tokens,
    )


def arrays(found: Evidence) -> list[np.ndarray]:
    return [layer.numpy() for layer in found.cross_attention if layer is not None]


def score(name: str, found: Evidence, **options: Any) -> np.ndarray:
    return make_method(name, options).scores(found).numpy()


@pytest.mark.parametrize("queries", [1, 2, 6, 7, 12, 24, 32])
def test_rank_points_with_ties(queries: int) -> None:
    found = evidence(queries)
    rng = np.random.default_rng(queries)
    maps = [np.round(rng.random((2, 3, queries, 11)), 1).astype(np.float32) for _ in range(2)]
    found = Evidence([torch.from_numpy(m) for m in maps], [], found.query_embeds, found.image_embeds, None)
    expected = count_points(maps)
    assert (score("catp", found) == expected).all()
    assert (rank_points(maps).scores == expected).all()


def test_every_column_gives_the_same_number_of_points() -> None:
    assert (score("catp", evidence(32, layers=1, tokens=17)).sum(1) == 4 * 17 * 32 * 33 / 2).all()


def test_slack_covers_what_noise_moves() -> None:
    rng = np.random.default_rng(0)
    maps = [np.exp(rng.normal(0, 0.01, (1, 4, 32, 50))).astype(np.float32)]  # near-uniform: many near ties
    votes = rank_points(maps)
    noisy = rank_points([m * (1 + rng.uniform(-4e-5, 4e-5, m.shape)).astype(np.float32) for m in maps])
    moved = np.abs(noisy.scores - votes.scores)
    assert moved.max() > 0
    assert (moved <= votes.slack).all()


@pytest.mark.parametrize("queries", [7, 12])
@pytest.mark.parametrize(
    ("options", "layers", "weights"),
    [
        ({"layers": "first"}, [0], [1.0]),
        ({"layers": "last"}, [2], [1.0]),
        ({"layers": "0,2"}, [0, 2], [1.0, 1.0]),
        ({"layer_weights": (0.5, 0.0, 2.0)}, [0, 1, 2], [0.5, 0.0, 2.0]),
        ({"layers": "2,1", "layer_weights": (3.0, 0.25)}, [2, 1], [3.0, 0.25]),
    ],
)
@pytest.mark.parametrize("image_weights", ["uniform", "attention"])
def test_weighted_rank_points(
    queries: int, options: dict[str, Any], layers: list[int], weights: list[float], image_weights: str
) -> None:
    found = evidence(queries)
    voices = found.image_weights.numpy() if image_weights == "attention" and found.image_weights is not None else None
    expected = weigh_points([arrays(found)[layer] for layer in layers], weights, voices)
    actual = score("catp", found, image_weights=image_weights, **options)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    votes = count_votes(make_method("catp", {"image_weights": image_weights, **options}), found)
    np.testing.assert_allclose(votes.scores, expected, rtol=1e-5)


def test_layers_without_weight_are_not_materialised() -> None:
    assert make_method("catp", {"layer_weights": (0.0, 1.0, 0.0)}).cross_layers(3) == (1,)
    assert make_method("catp", {"layers": "last"}).cross_layers(6) == (5,)
    assert make_method("l2-norm").cross_layers(6) == ()


def test_probability_points() -> None:
    found = evidence()
    assert found.image_weights is not None
    actual = score("catp", found, points="probability", image_weights="attention")
    np.testing.assert_allclose(actual, probability_points(arrays(found), found.image_weights.numpy()), rtol=1e-5)
    with pytest.raises(UsageError, match="probabilities sum to 1, so with equal weights all queries tie"):
        make_method("catp", {"points": "probability"})


def test_coverage() -> None:
    found = evidence()
    expected = cover_greedily(arrays(found), found.image_embeds.numpy())
    np.testing.assert_allclose(score("coverage", found), expected, rtol=1e-4, atol=1e-5)


def test_coverage_keeps_no_duplicates() -> None:
    found = evidence(queries=6)
    maps = [layer[:, :, [0, 1, 2, 0, 1, 2]] for layer in found.cross_attention if layer is not None]
    twins = Evidence(list(maps), [], found.query_embeds, found.image_embeds, None)
    order = np.argsort(-score("coverage", twins), axis=1, kind="stable")
    assert all(set(row[:3] % 3) == {0, 1, 2} for row in order)
    assert np.abs(np.take_along_axis(score("coverage", twins), order[:, 3:], 1)).max() < 1e-6


@pytest.mark.parametrize("image_weights", ["uniform", "attention"])
def test_coverage_by_other_weights_decreases_along_its_choice(image_weights: str) -> None:
    found = evidence()
    scores = score("coverage", found, image_weights=image_weights)
    assert (scores >= 0).all()
    assert score("coverage", found).tolist() != scores.tolist()


def test_distinct() -> None:
    found = evidence(queries=12)
    np.testing.assert_allclose(score("distinct", found), pivoted_lengths(found.query_embeds.numpy()), atol=1e-5)
    # As many dimensions as queries or fewer: the rest is explained, and scores nothing.
    narrow = Evidence([], [], found.query_embeds[:, :, :5], found.image_embeds, None)
    scores = score("distinct", narrow)
    assert ((scores > 1e-5).sum(1) == 5).all()
    np.testing.assert_allclose(scores.sum(1) <= 1 + 1e-5, True)


def test_baselines() -> None:
    found = evidence()
    np.testing.assert_allclose(score("l2-norm", found), np.linalg.norm(found.query_embeds.numpy(), axis=2), rtol=1e-5)
    expected = received([layer.numpy() for layer in found.self_attention])
    np.testing.assert_allclose(score("self-attention", found), expected, rtol=1e-5)
    assert (score("none", found) == 0).all()


def test_random_is_an_order_that_the_seed_decides() -> None:
    first, again, other = (score("random", evidence(32, seed=s), seed=q) for s, q in ((0, 1), (5, 1), (0, 2)))
    assert sorted(first[0]) == list(range(1, 33))
    assert (first == again).all() and (first != other).any()


@pytest.mark.parametrize("name", sorted(METHODS))
def test_no_score_is_negative_and_rows_do_not_depend_on_the_batch(name: str) -> None:
    found = evidence()
    scores = make_method(name).scores(found).expand(2, -1)
    assert scores.dtype == torch.float32 and scores.shape == (2, 12) and (scores >= 0).all()
    second = Evidence(
        [layer[1:] for layer in found.cross_attention if layer is not None],
        [layer[-1:] for layer in found.self_attention],
        found.query_embeds[1:],
        found.image_embeds[1:],
        None,
    )
    torch.testing.assert_close(make_method(name).scores(second)[-1], scores[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dice", {}, "accepted: catp, coverage"),
        ("l2-norm", {"points": "rank"}, "--points: method l2-norm does not take it; it is for catp"),
        ("catp", {"seed": 3}, "it is for random"),
        ("catp", {"image_weights": "distinctness"}, "method catp accepts uniform, attention"),
    ],
)
def test_options_that_a_method_does_not_take(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_method(name, options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": "middle"}, "accepted: all, first, last, or numbers"),
        ({"layers": "3"}, "cross-attention layers 0 to 2"),
        ({"layers": "1,1"}, "cross-attention layers 0 to 2"),
        ({"layer_weights": (1.0,)}, "1 numbers for 3 cross-attention layers"),
        ({"layer_weights": (0.0, 0.0, 0.0)}, "at least one of them above"),
        ({"layer_weights": (1.0, -1.0, 0.0)}, "numbers from 0"),
    ],
)
def test_layers_that_a_checkpoint_does_not_have(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_method("catp", options).cross_layers(3)
