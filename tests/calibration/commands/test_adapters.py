"""Adapters of checkpoints that a command exports itself: merged into what is asked, refused for a bundle."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer import Typer
from typer.testing import CliRunner

from catp.calibration.commands.calibrate import app as calibrate
from catp.calibration.commands.eval import app as evaluate
from catp.export.demo import CHECKPOINT
from catp.runtime.bundle.folder import open_bundle

HEAD = "language_model.model.decoder.layers.1.fc2"


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """As PEFT saves one; it adds noise to the language model's last layer, so that answers are lost."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    weights = load_file(CHECKPOINT / "model.safetensors")
    (shape,) = [weight.shape for name, weight in weights.items() if name.endswith(f"{HEAD}.weight")]
    generator = torch.Generator().manual_seed(1)
    halves = {
        "lora_A": torch.randn(4, shape[1], generator=generator),
        "lora_B": torch.randn(shape[0], 4, generator=generator),
    }
    save_file(
        {f"base_model.model.{HEAD}.{name}.weight": half for name, half in halves.items()},
        folder / "adapter_model.safetensors",
    )
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8.0, "target_modules": ["fc2"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.heavy
def test_accuracy_is_that_of_the_merged_checkpoint(adapter: Path, tmp_path: Path) -> None:
    found = tmp_path / "report.json"
    arguments = [str(CHECKPOINT), "--adapter", str(adapter), "--limit", "40", "--ratios", "0", "-o", str(found)]
    result = CliRunner().invoke(evaluate, arguments)
    assert result.exit_code == 0, result.output
    report = json.loads(found.read_text())
    assert report["model"]["adapter"] == adapter.name and report["scores"][0]["accuracy"] < 0.9


@pytest.mark.heavy
def test_the_chosen_ratio_is_published_with_the_adapter(adapter: Path, tmp_path: Path) -> None:
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "lora_alpha": 1e-3}))  # answers stay
    output = tmp_path / "bundle"
    arguments = ["ratio", str(CHECKPOINT), "--adapter", str(adapter), "--limit", "40", "--ratios", "0.05"]
    arguments += ["--methods", "coverage", "--max-accuracy-drop", "0.9", "-o", str(output)]
    result = CliRunner().invoke(calibrate, arguments)
    assert result.exit_code == 0, result.output
    assert open_bundle(output).manifest.model.adapter == adapter.name


@pytest.mark.parametrize("command", [(evaluate,), (calibrate, "ratio")], ids=["eval", "ratio"])
def test_a_bundle_has_its_adapter_inside(command: tuple[Typer | str, ...], demo_bundle: Path, adapter: Path) -> None:
    app, *rest = command
    assert isinstance(app, Typer)
    result = CliRunner().invoke(app, [*map(str, rest), str(demo_bundle), "--adapter", str(adapter)])
    assert result.exit_code == 2 and "is a bundle, whose adapter was merged" in result.stderr.replace("\n", " ")
