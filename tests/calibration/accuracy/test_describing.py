"""CIDEr-D in catp-eval, of captions that a bundle writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from catp.calibration.commands.eval import app
from catp.calibration.data.cider import Cider
from catp.export.demo import scenes
from catp.export.exporter import export_bundle
from catp.export.image_encoders.plan import EncoderOptions
from catp.runtime import EncoderWish, Pipeline

OTHERS = ("a small drawing of several shapes", "some shapes on a white ground", "circles and squares in a grid")


@pytest.fixture
def data(tmp_path: Path) -> tuple[Path, list[str]]:
    """Karpathy's form, and what the pictures are called."""
    names, entries = [], []
    for number, example in enumerate(scenes.examples(8, seed=3)):
        names.append(str(tmp_path / f"{number}.png"))
        example.image.save(names[-1])
        entries.append({"image": f"{number}.png", "caption": [OTHERS[number % 3], f"the shapes of picture {number}"]})
    (tmp_path / "captions.json").write_text(json.dumps(entries))
    return tmp_path / "captions.json", names


def ask(bundle: Path, *arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(bundle), *map(str, arguments)])
    return result.exit_code, result.stdout, " ".join(result.stderr.split())


def test_it_is_that_of_the_pipelines_captions(caption_bundle: Path, data: tuple[Path, list[str]]) -> None:
    file, names = data
    entries = json.loads(file.read_text())
    pipeline = Pipeline.load(caption_bundle)
    own = [answer.answer for answer in pipeline.generate(names, [""] * len(names), num_beams=1)]
    entries[2]["caption"].append(own[2])  # one of them says what somebody wrote
    file.write_text(json.dumps(entries))
    code, output, errors = ask(caption_bundle, "--data", file, "--json")
    assert code == 0, errors
    report = json.loads(output.splitlines()[-1])
    (score,) = report["scores"]
    values = 100 * Cider([entry["caption"] for entry in entries]).scores(own)
    assert score["cider"] == pytest.approx(values.mean()) and values[2] > np.delete(values, 2).max()
    low, high = score["cider_interval_95"]
    assert low < score["cider"] < high and report["questions"] == 8
    assert score["accuracy"] == pytest.approx(np.mean([a in e["caption"] for a, e in zip(own, entries)]))


def test_the_beginning_is_a_template(caption_bundle: Path, data: tuple[Path, list[str]]) -> None:
    file, _ = data
    template = "what is {question}"
    code, output, errors = ask(caption_bundle, "--data", file, "--prompt-template", template, "--json", "--limit", 4)
    assert code == 0, errors
    assert json.loads(output.splitlines()[-1])["evaluation"]["prompt_template"] == template


@pytest.mark.heavy
def test_a_checkpoint_is_exported_for_it(caption_checkpoint: Path, data: tuple[Path, list[str]]) -> None:
    code, output, errors = ask(caption_checkpoint, "--data", data[0], "--limit", 4, "--json")
    assert code == 0, errors
    assert json.loads(output.splitlines()[-1])["scores"][0]["cider"] is not None


@pytest.mark.heavy
def test_every_share_of_an_encoder_has_its_own(
    caption_checkpoint: Path, data: tuple[Path, list[str]], tmp_path: Path
) -> None:
    file, names = data
    bundle = export_bundle(str(caption_checkpoint), tmp_path / "pruned", encoder=EncoderOptions("cls", 0.8)).path
    pipeline, references = Pipeline.load(bundle), [entry["caption"] for entry in json.loads(file.read_text())]
    shares, own = (0.8, 0.5), []
    for share in shares:
        given = pipeline.generate(names, [""] * len(names), encoder=EncoderWish(flops=share), num_beams=1)
        own.append([answer.answer for answer in given])
    for texts, place in zip(references, (0, 1, 0, 1, 0, 1, 0, 1)):  # each share writes what was written of every second
        texts.append(own[place][references.index(texts)])
    entries = [{"image": Path(name).name, "caption": texts} for name, texts in zip(names, references)]
    file.write_text(json.dumps(entries))
    code, output, errors = ask(bundle, "--data", file, "--encoder-flops", "0.8,0.5", "--json")
    assert code == 0, errors
    scores = json.loads(output.splitlines()[-1])["scores"]
    wanted = [100 * Cider(references).scores(texts).mean() for texts in own]
    assert wanted[0] != wanted[1]
    assert [score["cider"] for score in scores] == pytest.approx(wanted) and "CIDEr-D" in errors
    assert all(low < score["cider"] < high for score in scores for low, high in [score["cider_interval_95"]])


def test_what_compares_captions_is_asked_for_recall(caption_bundle: Path, data: tuple[Path, list[str]]) -> None:
    code, _, errors = ask(caption_bundle, "--data", data[0], "--rerank", 2)
    assert code == 2 and "--rerank: only with a .json file" in errors and "a bundle that compares them" in errors
