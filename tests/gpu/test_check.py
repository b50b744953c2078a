"""`make gpu-check` on a machine without a GPU: it says precisely what did not run, and does not pass."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from catp.runtime.engines import PROVIDERS
from catp.runtime.engines.cuda import compute_capability

CHECK = Path(__file__).parent / "check.py"


@pytest.mark.skipif(compute_capability() is not None, reason="there is a GPU: run `make gpu-check`")
def test_without_a_gpu_it_fails_and_says_why(demo_bundle: Path, tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    command = [sys.executable, str(CHECK), "--bundle", str(demo_bundle), "--questions", "4", "-o", str(record)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "nothing ran on a GPU" in result.stderr and "Traceback" not in result.stderr
    written = json.loads(record.read_text())
    assert written["device"] is None
    runs = written["bundles"][0]["providers"]
    assert [run["provider"] for run in runs] == [name for name in PROVIDERS if name != "cpu"]
    assert all(run["outcome"].startswith("not run: ") for run in runs)
    assert not any("latency_ms" in run for run in runs)
