"""Bundles and checkpoints that the tests share, each made once per run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoints import save_odd_checkpoint

from catp.export.checkpoint import Checkpoint, load_checkpoint
from catp.export.demo import CHECKPOINT
from catp.export.exporter import export_bundle
from catp.runtime import Pipeline

torch.set_num_threads(1)  # the models are small, and the tests run in two processes


@pytest.fixture(scope="session")
def demo_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model, exported as a user would."""
    folder = tmp_path_factory.mktemp("demo") / "bundle"
    export_bundle(str(CHECKPOINT), folder)
    return folder


@pytest.fixture(scope="session")
def diagnostics_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with every method's scores among the Q-Former's outputs."""
    folder = tmp_path_factory.mktemp("diagnostics") / "bundle"
    export_bundle(str(CHECKPOINT), folder, diagnostics=True)
    return folder


@pytest.fixture(scope="session")
def demo_checkpoint() -> Checkpoint:
    return load_checkpoint(str(CHECKPOINT))


@pytest.fixture(scope="session")
def pipeline(demo_bundle: Path) -> Pipeline:
    return Pipeline.load(demo_bundle)


@pytest.fixture(scope="session")
def odd_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint unlike the demo in every dimension, with random weights and peaked attention."""
    return save_odd_checkpoint(tmp_path_factory.mktemp("odd") / "checkpoint")


@pytest.fixture(scope="session")
def odd_bundle(odd_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("odd") / "bundle"
    export_bundle(str(odd_checkpoint), folder, ratio=0.3)
    return folder


@pytest.fixture(scope="session")
def odd_diagnostics_bundle(odd_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its votes weigh layers and image tokens too."""
    folder = tmp_path_factory.mktemp("odd-diagnostics") / "bundle"
    export_bundle(str(odd_checkpoint), folder, diagnostics=True)
    return folder
