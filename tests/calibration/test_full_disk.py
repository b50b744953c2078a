"""A disk that fills up while catp-eval writes: one line, and no half of a report."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

EVALUATE = ["--data", "demo", "--limit", "4", "--ratios", "0.5", "--positions", "original"]


@pytest.mark.parametrize(
    ("option", "name", "limit"), [("--predictions", "answers.jsonl", 500), ("-o", "report.json", 1600)]
)
def test_a_disk_that_fills_up_is_one_line(
    demo_bundle: Path, tmp_path: Path, option: str, name: str, limit: int
) -> None:
    command = [sys.executable, "-c", "from catp.calibration.commands.eval import app; app()", str(demo_bundle)]
    (tmp_path / "report.json").write_text("old")
    # A limit on file size fails writes as a full disk does; the answers themselves need less.
    result = subprocess.run(
        [*command, *EVALUATE, option, str(tmp_path / name)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "300", "PYTHONDONTWRITEBYTECODE": "1", "MPLCONFIGDIR": str(tmp_path / "mpl")},
    )
    assert result.returncode == 1, result.stderr
    assert f"{name}: can't be written (File too large)" in result.stderr and "Traceback" not in result.stderr
    assert (tmp_path / "report.json").read_text() == "old"
    assert not list(tmp_path.glob(".*"))
