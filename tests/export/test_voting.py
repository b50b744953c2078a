"""The vote against a plain numpy count of rank points."""

import numpy as np
import pytest
import torch
from references import count_points

from catp.export.methods import METHODS
from catp.export.methods.catp import RankPoints
from catp.export.reference import rank_points


@pytest.mark.parametrize("queries", [1, 2, 6, 7, 12, 24, 32])
def test_rank_points_with_ties(queries: int) -> None:
    rng = np.random.default_rng(queries)
    maps = [np.round(rng.random((2, 3, queries, 11)), 1).astype(np.float32) for _ in range(2)]
    expected = count_points(maps)
    assert (RankPoints().scores([torch.from_numpy(m) for m in maps]).numpy() == expected).all()
    assert (rank_points(maps).scores == expected).all()


def test_every_column_gives_the_same_number_of_points() -> None:
    maps = [torch.rand(2, 4, 32, 17)]
    assert (RankPoints().scores(maps).sum(1) == 4 * 17 * 32 * 33 / 2).all()


def test_slack_covers_what_noise_moves() -> None:
    rng = np.random.default_rng(0)
    maps = [np.exp(rng.normal(0, 0.01, (1, 4, 32, 50))).astype(np.float32)]  # near-uniform: many near ties
    votes = rank_points(maps)
    noisy = rank_points([m * (1 + rng.uniform(-4e-5, 4e-5, m.shape)).astype(np.float32) for m in maps])
    moved = np.abs(noisy.scores - votes.scores)
    assert moved.max() > 0
    assert (moved <= votes.slack).all()


def test_none_scores_all_alike() -> None:
    assert (METHODS["none"]().scores([torch.rand(2, 3, 5, 7)]) == torch.zeros(2, 5)).all()
