"""Drawing tokens, against Hugging Face's warpers and against probabilities by hand."""

import itertools

import numpy as np
import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from catp.runtime.bundle.generation_settings import GREEDY
from catp.runtime.generation.sampling import draw, draw_several, generators, warp


@pytest.mark.parametrize("least", [1, 3])
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1, 0, 1), (0.7, 5, 1), (1.5, 0, 0.8), (2, 9, 0.5), (1, 50, 0.01), (3, 1, 0.9), (9, 0, 0)],
)
def test_what_is_left_is_what_hugging_face_leaves(temperature: float, top_k: int, top_p: float, least: int) -> None:
    settings = GREEDY.override(temperature=temperature, top_k=top_k, top_p=top_p)
    for scores in np.random.default_rng(0).normal(0, 3, (20, 40)).astype(np.float32):
        wanted = torch.from_numpy(scores)[None]
        if temperature != 1:
            wanted = TemperatureLogitsWarper(float(temperature))(None, wanted)
        if top_k:
            wanted = TopKLogitsWarper(top_k, min_tokens_to_keep=least)(None, wanted)
        if top_p < 1:
            wanted = TopPLogitsWarper(top_p, min_tokens_to_keep=least)(None, wanted)
        np.testing.assert_array_equal(warp(scores, settings, least), wanted[0].numpy())


def test_a_share_that_is_reached_exactly_is_enough() -> None:
    scores = np.zeros(4, np.float32)
    wanted = TopPLogitsWarper(0.5)(None, torch.from_numpy(scores)[None])[0].numpy()
    assert np.isfinite(wanted).sum() == 2
    np.testing.assert_array_equal(warp(scores, GREEDY.override(top_k=0, top_p=0.5)), wanted)


def test_no_share_at_all_is_the_likeliest_token_however_flat_the_scores_are() -> None:
    scores = np.random.default_rng(0).normal(0, 1e-3, 50_000).astype(np.float32)
    left = warp(scores, GREEDY.override(top_k=0, top_p=0.0))
    assert np.flatnonzero(np.isfinite(left)).tolist() == [scores.argmax()]


def test_a_token_is_as_likely_as_its_score_says() -> None:
    scores = np.log(np.array([0.5, 0.0, 0.3, 0.2], np.float32) + np.float32(1e-45))
    scores[1] = -np.inf
    rng = np.random.default_rng(0)
    counts = np.bincount([draw(scores, rng) for _ in range(5000)], minlength=4)
    assert counts[1] == 0
    np.testing.assert_allclose(counts / 5000, [0.5, 0, 0.3, 0.2], atol=0.03)


def test_several_are_drawn_without_replacement() -> None:
    p = np.array([0.5, 0.3, 0.15, 0.05])
    rng = np.random.default_rng(0)
    drawn = [tuple(draw_several(np.log(p).astype(np.float32), 2, rng).tolist()) for _ in range(6000)]
    for i, j in itertools.permutations(range(4), 2):
        assert drawn.count((i, j)) / 6000 == pytest.approx(p[i] * p[j] / (1 - p[i]), abs=0.025)
    assert all(i != j for i, j in drawn)


def test_a_seed_repeats_each_row_whatever_the_batch() -> None:
    one, many = generators(7, 1), generators(7, 3)
    assert one[0].random() == many[0].random() != many[1].random()
    assert generators(None, 1)[0].random() != generators(None, 1)[0].random()
