"""Official checkpoints for NLVR2, MADTP's and plain BLIP's, converted: the same weights and outputs, or one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from blip_official import ROWS, save_bert_tokenizer
from nlvr_official import MERGE, content_of, official_names, tiny, with_guidance
from transformers import AutoTokenizer
from typer.testing import CliRunner

from catp.export.checkpoints.loading import load_checkpoint
from catp.export.checkpoints.madtp import read_madtp
from catp.export.commands.convert import app as convert_command
from catp.export.conversion.blip_names import TASKS, rename
from catp.export.conversion.madtp import Converted, convert_madtp
from catp.export.nlvr import BlipForNlvr2, BlipNlvr2Config
from catp.runtime import UsageError

pytestmark = pytest.mark.usefixtures("in_process")


@pytest.fixture
def convert(tmp_path: Path) -> Callable[[object], Converted]:
    bert = save_bert_tokenizer(tmp_path / "bert")

    def run(content: object) -> Converted:
        torch.save(content, tmp_path / "checkpoint.pth")
        return convert_madtp(tmp_path / "checkpoint.pth", tmp_path / "out", str(bert))

    return run


def test_every_weight_of_the_base_size_has_a_name() -> None:
    with torch.device("meta"):
        wanted = set(BlipForNlvr2(BlipNlvr2Config()).state_dict())
    (task,) = (task for task in TASKS if task.architecture == "BlipForNlvr2")
    official = official_names(12, 12, 6)
    assert {rename(task, name) for name in official.values()} == wanted == set(official)


@pytest.mark.parametrize("madtp", [True, False])
@pytest.mark.parametrize("merge_from", [0, 1, 2])
def test_weights_and_outputs_are_those_of_the_original(
    convert: Callable[[object], Converted], tmp_path: Path, madtp: bool, merge_from: int
) -> None:
    model = tiny(merge_from)
    content = content_of(model, merge_from)
    found = convert(with_guidance(content) if madtp else content)
    assert found.names == len(model.state_dict()) and found.left_out == ("text_encoder.embeddings.position_ids",)
    loaded = load_checkpoint(str(tmp_path / "out"))
    assert loaded.family.name == "BLIP for statements about two images"
    assert loaded.model.config.merge_from == merge_from
    stored = loaded.model.state_dict()
    assert set(stored) == set(model.state_dict())
    assert all(torch.equal(stored[name], value) for name, value in model.state_dict().items())
    own = read_madtp(str(tmp_path / "out"), 128)
    if madtp:
        assert own.space_dict is not None and own.temperature == 1.25 and found.guidance == (7, 128)
    else:
        assert own.space_dict is None and own.temperature == 0 and found.guidance is None
    ids = torch.tensor([[ROWS - 1, 7, 8, 3]])
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        found_logits, wanted = (each(pixels, ids, torch.ones_like(ids)) for each in (loaded.model, model))
    torch.testing.assert_close(found_logits, wanted, atol=1e-6, rtol=0)  # eager attention, and fused


def test_statements_begin_with_enc(convert: Callable[[object], Converted], tmp_path: Path) -> None:
    convert(content_of(tiny()))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("it is red").input_ids[0] == tokenizer.convert_tokens_to_ids("[ENC]") == ROWS - 1
    assert tokenizer("it is red").input_ids[-1] == 3


@pytest.mark.parametrize(("madtp", "says"), [(True, "space_dict 7 x 128, temperature 1.25"), (False, "a plain BLIP")])
def test_the_command_says_what_it_found(tmp_path: Path, madtp: bool, says: str) -> None:
    bert, content = save_bert_tokenizer(tmp_path / "bert"), content_of(tiny())
    torch.save(with_guidance(content) if madtp else content, tmp_path / "checkpoint.pth")
    arguments = ["madtp", str(tmp_path / "checkpoint.pth"), "--tokenizer", str(bert), "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(convert_command, arguments)
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert "BLIP for statements about two images" in said and says in said


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda w: w.pop("cls_head.2.bias"), "are missing: cls_head.2.bias"),
        (lambda w: w.pop(f"text_encoder.encoder.layer.0.{MERGE}.weight"), "are missing"),
        (lambda w: w.pop(f"text_encoder.encoder.layer.1.{MERGE}.weight"), "layers 0 have a merge_layer"),
        (lambda w: w.update({"cls_head.4.bias": torch.ones(2)}), "it has others: cls_head.4.bias"),
        (lambda w: w.update({"cls_head.2.bias": torch.ones(3)}), "cls_head.2.bias is [3] instead of [2]"),
    ],
)
def test_a_file_that_lacks_something_is_refused(
    convert: Callable[[object], Converted], tmp_path: Path, change: Callable[[dict[str, Any]], object], says: str
) -> None:
    content = content_of(tiny(0), 0)
    change(content["model"])
    with pytest.raises(UsageError) as caught:
        convert(content)
    if says == "are missing":  # a layer with a bias and no weight: nothing merges from the second layer on
        assert "layer.0.crossattention.output.merge_layer" in str(caught.value)
    else:
        assert says in str(caught.value)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_guidance_needs_its_temperature(convert: Callable[[object], Converted]) -> None:
    content = with_guidance(content_of(tiny()))
    del content["temperature"]
    with pytest.raises(UsageError, match="it has no temperature: its keys are model, epoch"):
        convert(content)
