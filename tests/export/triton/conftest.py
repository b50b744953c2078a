"""A bundle whose files may get second names."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def demo_bundle(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of these tests' own: its files get second names, which other tests' tools refuse."""
    return Path(shutil.copytree(demo_bundle, tmp_path_factory.mktemp("own") / demo_bundle.name))
