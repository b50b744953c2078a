"""catp-calibrate ratio as a user calls it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from catp.calibration.commands.calibrate import app
from catp.export.demo import scenes
from catp.runtime import Pipeline
from catp.runtime.bundle.folder import open_bundle

RUNNER = CliRunner()


@pytest.fixture
def copy(demo_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))


def test_the_confirmed_ratio_goes_into_the_manifest(copy: Path, tmp_path: Path) -> None:
    arguments = ["--limit", "120", "--ratios", "0.1,0.9", "--max-accuracy-drop", "0.2"]
    report = tmp_path / "report.json"
    result = RUNNER.invoke(app, ["ratio", str(copy), *arguments, "--report", str(report), "--json"])
    assert result.exit_code == 0, result.output
    written = json.loads(report.read_text())
    assert written == json.loads(result.stdout.splitlines()[-1])
    assert written["chosen"]["setting"] == {"method": "catp", "positions": "original", "ratio": 0.1, "keep_mass": None}
    assert written["confirmed"] and written["confirmation"]["questions"] + written["search"]["questions"] == 120
    manifest = open_bundle(copy).manifest
    assert manifest.pruning.ratio == 0.1
    assert Pipeline.load(copy).num_kept() == 29
    assert not list(copy.glob(".*"))  # nothing temporary is left


def test_a_better_method_is_named_and_the_manifest_left_alone(diagnostics_bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(diagnostics_bundle, tmp_path / "bundle"))
    before = (copy / "catp.json").read_bytes()
    arguments = ["--limit", "120", "--ratios", "0.5", "--methods", "catp,coverage", "--max-accuracy-drop", "0.1"]
    result = RUNNER.invoke(app, ["ratio", str(copy), *arguments, "--learn-layer-weights"])
    assert result.exit_code == 0, result.output
    printed = " ".join(result.stderr.split())
    assert "catp-export --method coverage --ratio 0.5" in printed and "Layer weights" in printed
    assert (copy / "catp.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--limit", "60", "--ratios", "0.9", "--max-accuracy-drop", "0.05"], 1, "nothing was changed"),
        (["--max-accuracy-drop", "1.5"], 2, "0 < drop < 1"),
        (["--ratios", "0"], 2, "at least one above 0"),
        (["--ratios", "a"], 2, "separated by commas"),
        (["--methods", "random", "--limit", "20"], 2, "methods that look at the image"),
        (["--methods", "coverage", "--limit", "20"], 2, "--diagnostics"),
        (["-o", "elsewhere"], 2, "changed in place"),
        (["--report", "/nowhere/report.json"], 2, "there is no folder"),
        (["--learn-layer-weights"], 2, "export with --diagnostics"),
        (["--seed", "-1"], 2, "--seed"),
    ],
)
def test_what_can_not_be_changes_nothing(copy: Path, arguments: list[str], code: int, message: str) -> None:
    before = (copy / "catp.json").read_bytes()
    result = RUNNER.invoke(app, ["ratio", str(copy), *arguments])
    assert result.exit_code == code, result.output
    assert message in " ".join(result.stderr.split()) and "Traceback" not in result.output
    assert (copy / "catp.json").read_bytes() == before


def test_too_few_images_are_said_to_be_too_few(copy: Path) -> None:
    result = RUNNER.invoke(app, ["ratio", str(copy), "--limit", "20", "--ratios", "0.1", "--max-accuracy-drop", "0.01"])
    assert result.exit_code == 1
    assert "give 762 or more pictures" in " ".join(result.stderr.split())


def test_questions_about_one_picture_confirm_nothing(copy: Path, tmp_path: Path) -> None:
    """However many they are: halves share no picture."""
    before = (copy / "catp.json").read_bytes()
    image, data = Path(__file__).parents[3] / "export/demo/images/scene-a.png", tmp_path / "one.jsonl"
    line = {"image": str(image), "question": "what is in the bottom right?", "answer": "a black diamond"}
    data.write_text("".join(json.dumps(line) + "\n" for _ in range(40)))
    result = RUNNER.invoke(app, ["ratio", str(copy), "--data", str(data), "--ratios", "0.1"])
    printed = " ".join(result.stderr.split())
    assert result.exit_code == 1 and "more pictures" in printed and "Traceback" not in result.output
    assert (copy / "catp.json").read_bytes() == before


def test_where_nothing_is_right_nothing_is_confirmed(copy: Path, tmp_path: Path) -> None:
    before = (copy / "catp.json").read_bytes()
    data, report = tmp_path / "foreign.jsonl", tmp_path / "report.json"
    lines = []
    for index, example in enumerate(scenes.examples(40, 3)):
        Image.fromarray(np.asarray(example.image)).save(tmp_path / f"{index}.png")
        lines.append({"image": f"{index}.png", "question": "welche Farbe?", "answer": "keine von diesen"})
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = ["--data", str(data), "--ratios", "0.5", "--max-accuracy-drop", "0.6", "--report", str(report)]
    result = RUNNER.invoke(app, ["ratio", str(copy), *arguments])
    printed = " ".join(result.stderr.split())
    assert result.exit_code == 1 and "is answered right without pruning, so that nothing can be lost" in printed
    assert (copy / "catp.json").read_bytes() == before
    written = json.loads(report.read_text())
    assert not written["confirmed"] and written["chosen"] is None and written["search"]["full_accuracy"] == 0


def test_a_checkpoint_needs_an_output(tmp_path: Path) -> None:
    from catp.export.demo import CHECKPOINT

    result = RUNNER.invoke(app, ["ratio", str(CHECKPOINT)])
    assert result.exit_code == 2 and "with --output" in " ".join(result.stderr.split())


def test_unknown_commands_are_one_line() -> None:
    result = RUNNER.invoke(app, ["ration", "x"])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
