"""The Q-Former without its vote: the same embeddings, and nothing that scores or sorts."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from catp.calibration.benchmark.timing.conditions import Setup
from catp.calibration.benchmark.vote.vote import why_not
from catp.calibration.benchmark.vote.without_vote import without_vote
from catp.runtime import Pipeline
from catp.runtime.bundle.folder import open_bundle
from catp.runtime.providers.onnx_runtime import OrtProvider

PIXELS = np.random.default_rng(0).standard_normal((2, 3, 96, 96)).astype(np.float32)


def test_it_gives_the_embeddings_of_all_query_tokens(demo_bundle: Path, pipeline: Pipeline) -> None:
    path = demo_bundle / "qformer_voting.onnx"
    graph = without_vote(path)
    encoded = pipeline.encode(PIXELS)
    engine = OrtProvider("cpu").engine_in_memory(graph, demo_bundle)
    (found,) = engine.bind({"image_embeds": encoded["image_embeds"]}).run().values()
    np.testing.assert_allclose(found.numpy(), pipeline.votes(encoded).embeds, rtol=1e-4, atol=1e-5)
    left = onnx.load_from_string(graph).graph
    before = onnx.load(path, load_external_data=False).graph
    assert not {"TopK", "Greater", "ScatterElements"} & {node.op_type for node in left.node}
    assert "TopK" in {node.op_type for node in before.node} and len(left.node) < len(before.node)
    products = [sum(node.op_type in ("MatMul", "Gemm") for node in nodes) for nodes in (left.node, before.node)]
    assert products[0] == products[1]
    assert [value.name for value in left.input] == ["image_embeds"]


def test_a_graph_of_another_kind_is_refused(demo_bundle: Path) -> None:
    with pytest.raises((ValueError, KeyError)):
        without_vote(demo_bundle / "vision_encoder.onnx")


def test_what_keeps_the_vote_from_being_timed_is_said(demo_bundle: Path) -> None:
    setup = Setup(
        provider="cpu", engines=None, threads=1, batches=(1,), ratios=(0.0, 0.5), against=(), prompt_tokens=1,
        new_tokens=1, image_size=(1, 1), seed=0, warmup=0,
    )  # fmt: skip
    manifest = open_bundle(demo_bundle, verify=False).manifest
    assert why_not(manifest, setup) is None
    assert "no ratio above 0" in str(why_not(manifest, setup.model_copy(update={"ratios": (0.0,)})))
    assert "provider cuda" in str(why_not(manifest, setup.model_copy(update={"provider": "cuda"})))
    t5 = manifest.model_copy(update={"model": manifest.model.model_copy(update={"language": "encoder-decoder"})})
    assert "give --new-tokens 2 or more" in str(why_not(t5, setup))
    assert why_not(t5, setup.model_copy(update={"new_tokens": 2})) is None
    none = manifest.model_copy(update={"vote": manifest.pruning.model_copy(update={"method": "none"})})
    assert "has no vote" in str(why_not(none, setup))
