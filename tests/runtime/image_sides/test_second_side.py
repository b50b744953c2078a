"""A second image side is one file on each side of the border: nothing else knows of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from second_image_side import exported, run
from typer.testing import CliRunner

from catp.export.demo import CHECKPOINT, samples
from catp.export.exporter import export_bundle
from catp.export.families import FAMILIES
from catp.export.families.blip2 import Blip2
from catp.export.language_models import DecoderOnly
from catp.runtime import Pipeline
from catp.runtime.bundle.chains import IMAGE_STAGES, graphs_of
from catp.runtime.commands.inspect import app as inspect
from catp.runtime.errors import ParityError
from catp.runtime.image_sides import IMAGE_SIDES


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry in each table."""
    monkeypatch.setitem(IMAGE_STAGES, exported.SIDE, exported.STAGES)
    monkeypatch.setitem(IMAGE_SIDES, exported.SIDE, run.TwoSteps)
    monkeypatch.setitem(FAMILIES, ("blip-2", "decoder-only"), Blip2(exported.TwoSteps(), DecoderOnly()))


@pytest.mark.heavy  # one more export
@pytest.mark.usefixtures("registered")
def test_it_exports_passes_every_check_and_answers(tmp_path: Path, pipeline: Pipeline) -> None:
    bundle = export_bundle(str(CHECKPOINT), tmp_path / "bundle")
    assert tuple(bundle.manifest.graphs) == bundle.manifest.chain.graphs
    assert bundle.manifest.chain.graphs == ("patch_embedding", "patch_layers", "qformer_voting", "language_model")
    assert {check.subject for check in bundle.manifest.parity} >= {"patch_layers", "qformer_voting", "language_model"}
    assert graphs_of("vision") == ("vision_encoder", "patch_embedding", "patch_layers")
    two_steps = Pipeline.load(bundle.path)
    images, prompts = [sample.image for sample in samples()], [sample.prompt for sample in samples()]
    for options in ({"ratio": 0.5}, {"keep_mass": 0.6}):
        plain = pipeline.generate(images, prompts, **options)
        answers = two_steps.generate(images, prompts, **options)
        assert [(a.token_ids, a.kept_indices) for a in answers] == [(a.token_ids, a.kept_indices) for a in plain]
    shown = CliRunner().invoke(inspect, [str(bundle.path)])
    assert shown.exit_code == 0 and "patch_layers: fp32" in shown.stdout


@pytest.mark.heavy  # one more export
@pytest.mark.usefixtures("registered")
def test_a_side_that_computes_something_else_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: run.TwoSteps, pixel_values: np.ndarray, _: object) -> object:
        patches = self._embedding.bind({"pixel_values": pixel_values}).run()["patches"]
        return self._layers.bind({"patches": patches}).run()  # not turned back

    monkeypatch.setattr(run.TwoSteps, "see", wrong)
    with pytest.raises(ParityError, match="patch_layers: image_embeds: relative error"):
        export_bundle(str(CHECKPOINT), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
