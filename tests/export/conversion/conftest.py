"""Unpickling in the tests' own process, which takes no two seconds for each file to import torch."""

import subprocess
from pathlib import Path

import pytest

from catp.export.conversion import unpickling, unpickling_process


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the process: what it would do is done here, without its limit on memory."""

    def run(file: Path, folder: Path) -> subprocess.CompletedProcess[bytes]:
        unpickling_process.run(file, folder)
        return subprocess.CompletedProcess([], 0)

    monkeypatch.setattr(unpickling, "_run", run)
