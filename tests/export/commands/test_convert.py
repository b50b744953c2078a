"""catp-convert as a user calls it."""

from pathlib import Path

import pytest
from blip_official import save_bert_tokenizer, save_official
from safetensors.torch import load_file
from typer.testing import CliRunner

from catp.export.commands.convert import app

RUNNER = CliRunner()


def test_a_checkpoint_is_converted_and_described(tmp_path: Path) -> None:
    model = save_official(tmp_path / "checkpoint.pth")
    out, bert = tmp_path / "out", save_bert_tokenizer(tmp_path / "bert")
    arguments = ["madtp", str(tmp_path / "checkpoint.pth"), "-o", str(out)]
    result = RUNNER.invoke(app, [*arguments, "--tokenizer", str(bert)])
    assert result.exit_code == 0, result.output
    said = " ".join(result.stderr.split())
    total = len(model.state_dict())
    assert f"BLIP for question answering: {total} of {total} weights, images of 32 pixels in patches of 8" in said
    assert "space_dict 7 x 128, temperature 0.75" in said and f"Published {out}" in said
    assert "Left out" in said and "text_encoder.embeddings.position_ids" in said
    assert len(load_file(out / "model.safetensors")) == total - 2  # of two tied weights, each is there once
    again = RUNNER.invoke(app, [*arguments, "--tokenizer", str(bert)])
    assert again.exit_code == 2 and "the folder is not empty" in again.stderr


def test_blip_s_own_file_is_converted_by_its_own_name(tmp_path: Path) -> None:
    save_official(tmp_path / "checkpoint.pth", "captions", madtp=False)
    out, bert = tmp_path / "out", save_bert_tokenizer(tmp_path / "bert")
    arguments = ["blip", str(tmp_path / "checkpoint.pth"), "-o", str(out), "--tokenizer", str(bert)]
    result = RUNNER.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    said = " ".join(result.stderr.split())
    assert "BLIP for captions: " in said and "no space_dict, so it is a plain BLIP" in said


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ([], "--tokenizer is missing: the vocabulary is not in a .pth file"),
        (["--tokenizer", "bert"], "there is no such file"),
        (["--tokenizr", "bert"], "No such option"),
    ],
)
def test_mistakes_end_in_one_line(tmp_path: Path, more: list[str], says: str) -> None:
    result = RUNNER.invoke(app, ["madtp", str(tmp_path / "none.pth"), "-o", str(tmp_path / "out"), *more])
    assert result.exit_code == 2 and says in result.stderr and len(result.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())
