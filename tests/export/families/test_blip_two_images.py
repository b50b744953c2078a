"""BLIP for two images beside what the table of families shows: refusals, the chain, profiles, other commands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from catp.calibration.commands.bench import app as bench_command
from catp.calibration.commands.calibrate import app as calibrate_command
from catp.calibration.commands.explain import app as explain_command
from catp.export.checkpoints.loading import load_checkpoint
from catp.export.demo import samples
from catp.export.engines.profiles import Limits
from catp.export.exporter import export_bundle
from catp.export.image_encoders.plan import EncoderOptions
from catp.runtime import UsageError
from catp.runtime.bundle.chains import find_chain, make_chain
from catp.runtime.bundle.folder import open_bundle
from catp.runtime.bundle.manifest import Manifest
from catp.runtime.bundle.plans import ShapeRange
from catp.runtime.commands.serve import app as serve_command


@pytest.fixture
def manifest(nlvr_bundle: Path) -> Manifest:
    return open_bundle(nlvr_bundle, verify=False).manifest


def test_the_chain_is_found_by_its_graphs(manifest: Manifest) -> None:
    chain = make_chain("image-tokens", "two-images")
    assert find_chain(chain.graphs, "two-images") == chain == manifest.chain
    assert chain.labels == ("vision", "text") and not manifest.writes_text and manifest.vote is None
    with pytest.raises(ValueError, match="graphs: statement_encoder missing"):
        find_chain(("vision_encoder",), "two-images")
    content = manifest.model_dump(mode="json")
    del content["graphs"]["statement_encoder"]["inputs"][3]
    with pytest.raises(ValidationError, match=r"statement_encoder\.inputs: second_image_embeds is missing"):
        Manifest.model_validate(content)


def test_both_images_of_a_pair_are_rows_of_the_vision_encoder(manifest: Manifest) -> None:
    limits = Limits(max_batch=4, max_prompt=48)
    (vision,) = limits.profiles(manifest.graphs["vision_encoder"], manifest)
    assert vision.shapes["pixel_values"] == ShapeRange(min=(1, 3, 56, 56), opt=(2, 3, 56, 56), max=(8, 3, 56, 56))
    (text,) = limits.profiles(manifest.graphs["statement_encoder"], manifest)
    assert text.shapes["text_ids"] == ShapeRange(min=(1, 1), opt=(1, 16), max=(4, 48))
    assert text.shapes["second_image_embeds"] == ShapeRange(min=(1, 50, 60), opt=(1, 50, 60), max=(4, 50, 60))


def test_a_text_encoder_that_reads_no_image_is_refused(nlvr_checkpoint: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(nlvr_checkpoint, tmp_path / "checkpoint"))
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["is_decoder"] = False
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="its text encoder reads no image"):
        load_checkpoint(str(copy))


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"ratio": 0.5}, "has no query tokens to leave out"),
        ({"keep_mass": 0.5}, "keep mass 0.5"),
        ({"method": "l2-norm"}, "has no query tokens to leave out"),
        ({"encoder": EncoderOptions("cls", 0.5, text_flops=0.05)}, "is the nearest that 3 layers can leave"),
        ({"encoder": EncoderOptions("madtp", 0.5)}, "the checkpoint has no space_dict"),
    ],
)
def test_what_it_can_not_do_is_refused(
    nlvr_checkpoint: Path, tmp_path: Path, asked: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        export_bundle(str(nlvr_checkpoint), tmp_path / "bundle", **asked)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("command", "arguments", "words"),
    [
        (serve_command, [], "requests bring one image; use catp-match"),
        (bench_command, ["--new-tokens", "4"], "which scores texts and generates none"),
        (calibrate_command, ["ratio"], "votes for no query tokens"),
        (explain_command, ["--image", str(samples()[0].image), "--prompt", "red", "-o", "page.png"], "no query tokens"),
    ],
)
def test_commands_that_ask_about_one_image_refuse_it(
    nlvr_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Any, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    first, rest = (arguments[:1], arguments[1:]) if command is calibrate_command else ([], arguments)
    found = CliRunner().invoke(command, [*first, str(nlvr_bundle), *rest])
    assert found.exit_code == 2 and words in found.stderr, found.output
    assert list(tmp_path.iterdir()) == []
