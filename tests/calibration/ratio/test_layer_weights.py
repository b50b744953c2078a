"""Layer weights are learned by trying, from each layer's rank points."""

from pathlib import Path

import pytest

from catp.calibration.data.demo import DemoScenes
from catp.calibration.ratio.layer_weights import LayerWeights
from catp.runtime import Pipeline, UsageError


@pytest.fixture(scope="module")
def compared(diagnostics_bundle: Path) -> Pipeline:
    return Pipeline.load(diagnostics_bundle)


def test_equal_weights_are_the_vote_itself(compared: Pipeline) -> None:
    asked = list(DemoScenes(24, 5))
    weights = LayerWeights(compared, asked, 8, "original", "exact match", 8)
    assert weights.layers == 2
    right = [compared.generate([q.image], [q.prompt], ratio=0.75)[0].answer == q.answers[0] for q in asked]
    assert weights.right((1.0, 1.0)).tolist() == weights.right((3.0, 3.0)).tolist() == right


def test_what_is_learned_is_no_worse_where_it_was_learned(compared: Pipeline) -> None:
    weights = LayerWeights(compared, DemoScenes(24, 6), 8, "original", "exact match", 8)
    steps: list[None] = []
    learned = weights.learn(lambda: steps.append(None))
    assert len(learned) == 2 and any(learned)
    assert weights.right(learned).mean() >= weights.right((1.0, 1.0)).mean()
    assert len(steps) <= 1 + 3 * 2


def test_a_bundle_without_each_layers_points_says_so(pipeline: Pipeline) -> None:
    with pytest.raises(UsageError, match="export with --diagnostics"):
        LayerWeights(pipeline, DemoScenes(8, 5), 8, "original", "exact match", 8)
