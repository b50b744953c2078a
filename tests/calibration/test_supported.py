"""What the commands say to a bundle of a family that they don't know."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from catp.calibration.commands.bench import app as bench
from catp.calibration.commands.calibrate import app as calibrate
from catp.calibration.commands.explain import app as explain
from catp.export.demo import samples
from catp.runtime.commands.run import app as run

IMAGE = ["--image", str(samples()[0].image), "--prompt", "what is red?"]


@pytest.mark.parametrize(
    ("app", "fixture", "before", "after", "message"),
    [
        (bench, "video_bundle", [], ["--against", "transformers"], "which no other runtime is timed with"),
        (explain, "instructblip_bundle", [], [*IMAGE, "-o", "out.png"], "exported without diagnostics"),
        (explain, "instructblip_bundle", [], [*IMAGE[:2], "-o", "out.png"], "Missing option '--prompt'"),
        (explain, "video_t5_bundle", [], [*IMAGE, "-o", "out.png"], "exported without diagnostics"),
    ],
)
def test_another_family_is_refused_in_one_line(
    app: typer.Typer,
    fixture: str,
    before: list[str],
    after: list[str],
    message: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, [*before, str(request.getfixturevalue(fixture)), *after], env={"COLUMNS": "200"})
    assert result.exit_code == 2 and message in result.stderr, result.output
    assert len(result.stderr.strip().splitlines()) == 1 and not any(tmp_path.iterdir())


@pytest.mark.parametrize("fixture", ["clip_bundle", "blip_retrieval_bundle", "nlvr_bundle", "retrieval_bundle"])
@pytest.mark.parametrize(
    ("app", "before", "after"),
    [
        (calibrate, ["ratio"], []),
        (explain, [], [*IMAGE, "-o", "out.png"]),
        (run, [], IMAGE),
    ],
    ids=["ratio", "explain", "run"],
)
def test_what_scores_texts_is_refused_by_its_name(
    app: typer.Typer,
    before: list[str],
    after: list[str],
    fixture: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    bundle = request.getfixturevalue(fixture)
    result = CliRunner().invoke(app, [*before, str(bundle), *after], env={"COLUMNS": "200"})
    assert result.exit_code == 2, result.output
    assert str(bundle) in result.stderr and len(result.stderr.strip().splitlines()) == 1
    assert not any(tmp_path.iterdir())
