"""Graphs that two bundles have in common are in memory once, and each bundle still answers as alone."""

from __future__ import annotations

from pathlib import Path

from catp.calibration.benchmark.contenders.shared_engines import SharedEngines
from catp.runtime import Pipeline
from catp.runtime.bundle.folder import open_bundle
from catp.runtime.providers import open_provider

PICTURE = "export/demo/images/scene-a.png"
PROMPT = "Question: what is in the bottom right? Answer:"


def test_one_language_model_and_two_encoders(demo_bundle: Path, twice_pruned_bundle: Path) -> None:
    provider = SharedEngines(open_provider("cpu"))
    dense, pruned = (open_bundle(folder) for folder in (demo_bundle, twice_pruned_bundle))
    assert provider.engine(dense, "language_model") is provider.engine(pruned, "language_model")
    for graph in ("vision_encoder", "qformer_voting"):
        assert provider.engine(dense, graph) is not provider.engine(pruned, graph)
    pipelines = Pipeline(dense, provider), Pipeline(pruned, provider)
    alone = Pipeline.load(demo_bundle), Pipeline.load(twice_pruned_bundle)
    for _ in range(2):  # one after the other over one cache's graph, then again
        for together, single in zip(pipelines, alone):
            (expected,) = single.generate([PICTURE], [PROMPT])
            (found,) = together.generate([PICTURE], [PROMPT])
            assert (found.answer, found.token_ids) == (expected.answer, expected.token_ids)


def test_weights_count_as_content(demo_bundle: Path, half_bundle: Path) -> None:
    """Precision changes graph and weights; the graph's file alone would not tell two checkpoints apart."""
    provider = SharedEngines(open_provider("cpu"))
    demo, half = open_bundle(demo_bundle), open_bundle(half_bundle)
    assert provider.engine(demo, "language_model") is not provider.engine(half, "language_model")
    graphs = dict(demo.manifest.graphs)
    spec = graphs["language_model"]
    assert spec.external_data is not None
    other = spec.external_data.model_copy(update={"sha256": "0" * 64})
    graphs["language_model"] = spec.model_copy(update={"external_data": other})
    changed = type(demo)(demo.path, demo.manifest.model_copy(update={"graphs": graphs}))
    assert provider.engine(changed, "language_model") is not provider.engine(demo, "language_model")
