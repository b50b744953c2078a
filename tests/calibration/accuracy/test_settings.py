from typing import Any

import pytest

from catp.calibration.accuracy.settings import Grid, Setting, check_methods, score_outputs
from catp.runtime import Pipeline, UsageError
from catp.runtime.bundle.manifest import Manifest, TensorSpec, scores_of


def exported(pipeline: Pipeline, method: str, *compared: str) -> Manifest:
    """The demo's manifest as if it had been exported with that method and diagnostics."""
    manifest = pipeline.manifest
    qformer = manifest.graphs["qformer_voting"]
    more = tuple(TensorSpec(name=scores_of(name), dtype="float32", shape=("batch", 32)) for name in compared)
    graphs = {
        **manifest.graphs,
        "qformer_voting": qformer.model_copy(update={"outputs": (*qformer.outputs, *more)}),
    }
    pruning = manifest.pruning.model_copy(update={"method": method})
    return manifest.model_copy(update={"graphs": graphs, "vote": pruning})


def test_every_combination_is_a_setting() -> None:
    grid = Grid(("catp", "random"), (0.0, 0.5), ("compact",), (0.8,))
    assert grid.settings() == (
        Setting("catp", "compact", 0.0),
        Setting("random", "compact", 0.0),
        Setting("catp", "compact", 0.5),
        Setting("random", "compact", 0.5),
        Setting("catp", "compact", keep_mass=0.8),  # of random votes no share can be kept
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((("catp",), (1.0,), ("compact",)), "0 <= ratio < 1"),
        ((("catp",), (float("nan"),), ("compact",)), "0 <= ratio < 1"),
        ((("catp",), (), ("compact",), (0.0,)), "0 < mass <= 1"),
        ((("random",), (0.5,), ("compact",), (0.5,)), "name another method as well"),
        ((("none",), (0.0, 0.5), ("compact",)), "--ratios 0"),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Grid(*arguments)


def test_a_bundle_answers_for_its_own_method_and_for_its_diagnostics(pipeline: Pipeline) -> None:
    assert score_outputs(pipeline.manifest) == {"catp": "token_scores"}
    with_more = exported(pipeline, "coverage", "catp", "coverage")
    # Its own options, not the defaults of the diagnostics, are what the bundle would do.
    assert score_outputs(with_more) == {"coverage": "token_scores", "catp": "token_scores.catp"}
    assert check_methods(with_more, ["random", "catp", "random"]) == ("random", "catp")
    assert score_outputs(exported(pipeline, "random")) == {}


@pytest.mark.parametrize("method", ["coverage", "none", "attention", ""])
def test_a_method_without_scores_is_refused(pipeline: Pipeline, method: str) -> None:
    with pytest.raises(UsageError, match=r"accepted: catp, random; .* --diagnostics"):
        check_methods(pipeline.manifest, ["catp", method])
