import numpy as np
import pytest

from catp.calibration.accuracy.choice import kept_tokens, random_scores
from catp.calibration.accuracy.settings import Setting
from catp.export.demo import scenes
from catp.runtime import Pipeline


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5, 0.75, 0.9, 0.99])
def test_the_choice_is_the_graphs(pipeline: Pipeline, ratio: float) -> None:
    encoded = pipeline.encode(pipeline.preprocess([e.image for e in scenes.examples(12, seed=8)]))
    votes = pipeline.votes(encoded)
    pruned = pipeline.prune(encoded, pipeline.num_kept(ratio))
    kept = np.array(kept_tokens(Setting("catp", "original", ratio), votes.scores))
    assert np.array_equal(kept, pruned.kept_indices.numpy())
    assert np.array_equal(votes.keep(kept).kept_embeds, pruned.kept_embeds.numpy())


def test_a_share_of_the_votes_keeps_what_each_image_needs() -> None:
    scores = np.array([[4, 1, 3, 2], [1, 97, 1, 1], [1, 1, 1, 1]], np.float32)
    kept = [row.tolist() for row in kept_tokens(Setting("catp", "original", keep_mass=0.7), scores)]
    assert kept == [[0, 2], [1], [0, 1, 2]]  # 7 of 10, 97 of 100, and ties by lower index


def test_random_tokens_depend_on_seed_and_question_alone() -> None:
    scores = random_scores(3, "question 1", 32)
    assert sorted(scores) == list(range(1, 33))
    assert np.array_equal(scores, random_scores(3, "question 1", 32))
    assert not np.array_equal(scores, random_scores(4, "question 1", 32))
    assert not np.array_equal(scores, random_scores(3, "question 2", 32))
    # Written down, so that no later version draws others.
    (kept,) = kept_tokens(Setting("random", "original", 0.9), scores[None])
    assert kept.tolist() == [6, 12, 31]


def test_random_tokens_are_kept_equally_often() -> None:
    scores = np.stack([random_scores(0, str(question), 32) for question in range(2000)])
    counts = np.bincount(np.concatenate(kept_tokens(Setting("random", "original", 0.75), scores)), minlength=32)
    # Binomial: mean 500, standard deviation 19.
    assert abs(counts - 500).max() < 85
