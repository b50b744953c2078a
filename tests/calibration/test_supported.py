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

IMAGE = ["--image", str(samples()[0].image), "--prompt", "what is red?"]


@pytest.mark.parametrize(
    ("app", "arguments", "fixture", "message"),
    [
        (bench, [], "t5_bundle", "accepted: a decoder-only language model"),
        (
            calibrate,
            ["precision", "--to", "int8", "--for", "cpu"],
            "t5_bundle",
            "driven by vision_encoder, qformer_voting",
        ),
        (bench, [], "instructblip_bundle", "every question has votes of its own"),
        (calibrate, ["ratio"], "instructblip_bundle", "every question has votes of its own"),
        (explain, IMAGE, "instructblip_bundle", "every question has votes of its own"),
    ],
)
def test_another_family_is_refused_in_one_line(
    app: typer.Typer, arguments: list[str], fixture: str, message: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    bundle = str(request.getfixturevalue(fixture))
    words = (
        [*arguments[:1], bundle, *arguments[1:]]
        if arguments and not arguments[0].startswith("-")
        else [bundle, *arguments]
    )
    output = ["-o", str(tmp_path / "out.png")] if app is not bench else []
    result = CliRunner().invoke(app, [*words, *output], env={"COLUMNS": "200"})
    assert result.exit_code == 2 and message in result.stderr, result.output
    assert len(result.stderr.strip().splitlines()) == 1 and not any(tmp_path.iterdir())
