"""The manifest names what half-precision graphs compute in float32: as the graphs say it."""

from pathlib import Path

import onnx
import pytest

from catp.runtime.bundle.folder import open_bundle


def count(model: onnx.ModelProto, operator: str, attribute: str, default: int) -> int:
    nodes = [node for node in model.graph.node if node.op_type == operator]
    values = [{a.name: a.i for a in node.attribute}.get(attribute, default) for node in nodes]
    return values.count(onnx.TensorProto.FLOAT)


@pytest.mark.parametrize("fixture", ["half_bundle", pytest.param("bf16_bundle", marks=pytest.mark.heavy)])
def test_they_are_counted(fixture: str, request: pytest.FixtureRequest) -> None:
    bundle = open_bundle(request.getfixturevalue(fixture))
    for name in ("vision_encoder", "language_model"):
        model = onnx.load(bundle.graph_file(name), load_external_data=False)
        norms = count(model, "LayerNormalization", "stash_type", 1)
        softmaxes = count(model, "Attention", "softmax_precision", 0)
        assert norms and softmaxes
        islands = bundle.manifest.graphs[name].float32_islands
        assert islands[:2] == (f"{softmaxes} Attention softmax", f"{norms} LayerNormalization statistics")
    # The Q-Former computes in float32 anyway.
    assert bundle.manifest.graphs["qformer_voting"].float32_islands == ()


def test_a_float32_bundle_has_none(demo_bundle: Path) -> None:
    assert not any(graph.float32_islands for graph in open_bundle(demo_bundle).manifest.graphs.values())
