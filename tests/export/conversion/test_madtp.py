"""Official checkpoints of MADTP converted: the same outputs bit for bit, or one line and nothing written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from blip_official import (
    CLASSES,
    ROWS,
    official_content,
    official_names,
    save_bert_tokenizer,
    save_official,
    tiny_blip,
)
from PIL import Image
from tokenizers import Tokenizer
from transformers import AutoProcessor, AutoTokenizer, BlipConfig

from catp.export.checkpoints.madtp import read_madtp
from catp.export.conversion.blip_names import TASKS, rename
from catp.export.conversion.madtp import convert_madtp
from catp.runtime import CatpError, UsageError

pytestmark = pytest.mark.usefixtures("in_process")

TASK = "question answering"
Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert_tokenizer(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    return official_content(tiny_blip(TASK), TASK)


def refusal(folder: Path, content: object, bert: Path, error: type[CatpError] = UsageError) -> str:
    """The one line for a file of this content (bytes as they are); nothing is left in the folder but the file."""
    path = folder / "checkpoint.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(CatpError) as caught:
        convert_madtp(path, folder / "out", str(bert))
    assert type(caught.value) is error, caught.value
    assert "\n" not in str(caught.value)
    assert [entry.name for entry in folder.iterdir()] == ["checkpoint.pth"]
    return str(caught.value)


def changed(content: dict[str, Any], change: Change) -> dict[str, Any]:
    """A copy in which the model's dictionary was changed."""
    weights = dict(content["model"])
    change(weights)
    return {**content, "model": weights}


@pytest.mark.parametrize(("task", "names"), [("question answering", 789), ("captions", 473), ("retrieval", 472)])
def test_every_weight_of_the_base_size_has_a_name(task: str, names: int) -> None:
    with torch.device("meta"):
        wanted = set(CLASSES[task](BlipConfig()).state_dict())
    (known,) = (known for known in TASKS if known.kind == task)
    official = official_names(task, 12, 12)
    assert {rename(known, name) for name in official.values()} == wanted == set(official)
    assert len(wanted) == names


@pytest.mark.parametrize("madtp", [True, False], ids=["madtp", "plain"])
@pytest.mark.parametrize("task", CLASSES)
def test_outputs_are_those_of_the_original(task: str, madtp: bool, tmp_path: Path, bert: Path) -> None:
    model = save_official(tmp_path / "checkpoint.pth", task, madtp)
    found = convert_madtp(tmp_path / "checkpoint.pth", tmp_path / "out", str(bert))
    assert (found.guidance, found.temperature) == (((7, 128), 0.75) if madtp else (None, 0.0))
    assert (tmp_path / "out" / "madtp.safetensors").exists() == madtp
    converted, info = CLASSES[task].from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()) and found.names == len(model.state_dict())
    assert not {".unpickled", ".incomplete"} & {path.name for path in (tmp_path / "out").iterdir()}
    # Where one name of a weight was left out, the class ties it to the other.
    for name, value in model.state_dict().items():
        assert torch.equal(converted.state_dict()[name], value), name
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    pictures = [_picture(seed) for seed in (1, 2)]
    inputs = processor(images=pictures, text=["what is it?", "is it red?"], return_tensors="pt")
    assert inputs.pixel_values.shape == (2, 3, 32, 32)
    given = {name: inputs[name] for name in ("input_ids", "pixel_values", "attention_mask")}
    if task == "question answering":
        given["decoder_input_ids"] = torch.tensor([[ROWS - 2, 5, 6], [ROWS - 2, 7, 8]])
    with torch.no_grad():
        ours, theirs = converted(**given), model(**given)
        for name in ("image_embeds", "last_hidden_state", "logits", "itm_score"):
            if getattr(theirs, name, None) is not None:
                assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
        if task != "retrieval":
            given.pop("decoder_input_ids", None)
            beams = {"num_beams": 3, "max_length": 10, "do_sample": False}
            assert torch.equal(converted.generate(**given, **beams), model.generate(**given, **beams))


def _picture(seed: int) -> Any:
    pixels = torch.randint(0, 256, (40, 50, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def test_the_folder_of_a_question_answering_model(tmp_path: Path, bert: Path, content: dict[str, Any]) -> None:
    torch.save(content, tmp_path / "checkpoint.pth")
    out = tmp_path / "out"
    found = convert_madtp(tmp_path / "checkpoint.pth", out, str(bert))
    assert {path.name for path in out.iterdir()} == {
        "config.json", "generation_config.json", "madtp.json", "madtp.safetensors", "model.safetensors",
        "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    madtp = read_madtp(str(out), 128)
    assert madtp.temperature == 0.75 and madtp.space_dict is not None
    assert torch.equal(madtp.space_dict, content["model"]["space_dict"])
    assert {name.rpartition(".")[2] for name in found.left_out} == {"position_ids"} and len(found.left_out) == 2
    config = json.loads((out / "config.json").read_text())
    vision, text = config["vision_config"], config["text_config"]
    assert config["architectures"] == ["BlipForQuestionAnswering"] and config["dtype"] == "float32"
    assert (vision["image_size"], vision["patch_size"], vision["num_attention_heads"]) == (32, 8, 2)
    assert (vision["layer_norm_eps"], text["layer_norm_eps"]) == (1e-6, 1e-12)
    assert (text["num_attention_heads"], text["vocab_size"], text["bos_token_id"]) == (2, ROWS, ROWS - 2)
    assert (text["sep_token_id"], text["pad_token_id"], text["label_smoothing"]) == (3, 0, 0.1)
    settings = json.loads((out / "generation_config.json").read_text())
    assert (settings["num_beams"], settings["max_length"], settings["eos_token_id"]) == (3, 10, 3)


def test_questions_begin_as_in_the_official_code(tmp_path: Path, bert: Path, content: dict[str, Any]) -> None:
    torch.save(content, tmp_path / "checkpoint.pth")
    convert_madtp(tmp_path / "checkpoint.pth", tmp_path / "out", str(bert))
    plain = AutoTokenizer.from_pretrained(bert)("what is it?").input_ids
    wanted = [ROWS - 1, *plain[1:]]  # [ENC] where BERT has [CLS]
    ours = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert ours("what is it?").input_ids == wanted and ours.bos_token_id == ROWS - 2
    assert Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json")).encode("what is it?").ids == wanted
    # A tokenizer that has the two tokens already is taken as well.
    convert_madtp(tmp_path / "checkpoint.pth", tmp_path / "again", str(tmp_path / "out"))
    assert AutoTokenizer.from_pretrained(tmp_path / "again")("what is it?").input_ids == wanted


def test_momentum_copies_and_queues_are_left_out(tmp_path: Path, bert: Path) -> None:
    save_official(tmp_path / "checkpoint.pth", "retrieval")
    found = convert_madtp(tmp_path / "checkpoint.pth", tmp_path / "out", str(bert))
    firsts = {name.partition(".")[0] for name in found.left_out}
    assert firsts == {
        "visual_encoder_m", "text_encoder_m", "vision_proj_m", "text_proj_m", "temp", "image_queue", "text_queue",
        "idx_queue", "ptr_queue", "text_encoder",
    }  # fmt: skip
    assert [name for name in found.left_out if name.startswith("text_encoder.")] == [
        "text_encoder.embeddings.position_ids"
    ]
    # Its text begins with [CLS], by which image and text are compared.
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("it").input_ids[0] == 2


KEY = "text_encoder.encoder.layer.1.attention.self.key.bias"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda w: w.pop(KEY), f"are missing: {KEY};"),
        (lambda w: w.pop("visual_encoder.pos_embed"), "are missing: vision_model.embeddings.position_embedding"),
        (lambda w: w.update({"visual_encoder.blocks.0.attn.bias_table": torch.ones(2)}), "attn.bias_table"),
        (lambda w: w.update({"itm_head.weight": torch.ones(2, 128)}), "it has others: itm_head.weight"),
        (lambda w: w.update({KEY: torch.ones(64)}), f"{KEY} is [64] instead of [128]"),
        (lambda w: w.update({KEY: torch.full((128,), torch.inf)}), f"{KEY} has values that are no finite numbers"),
        (lambda w: w.update({"text_decoder.cls.predictions.decoder.weight": torch.ones(ROWS, 128)}), "differ"),
        (lambda w: w.update({"text_encoder.embeddings.position_ids": torch.ones(1, 24)}), "does not count from 0"),
        (lambda w: w.update(space_dict=torch.ones(7, 192)), "192 wide and the vision encoder 128"),
        (lambda w: w.update({"cls_head.0.weight": torch.ones(2, 2)}), "it has others: cls_head.0.weight"),
        (lambda w: (w.clear(), w.update({"visual.conv1.weight": torch.ones(2)})), "those of no BLIP (visual)"),
        (lambda w: (w.clear(), w.update({"weight": torch.ones(2)})), "those of no BLIP (weight)"),
        (lambda w: w.update({"visual_encoder.pos_embed": torch.ones(1, 16, 128)}), "no square"),
        (lambda w: w.update({KEY: torch.zeros(1).expand(128)}), "larger than what the file holds"),
        (lambda w: w.update({KEY: "text"}), "is no tensor"),
    ],
)
def test_models_that_are_not_converted(
    tmp_path: Path, bert: Path, content: dict[str, Any], change: Change, says: str
) -> None:
    assert says in refusal(tmp_path, changed(content, change), bert)


def test_missing_layers_are_listed_by_kind(tmp_path: Path, bert: Path, content: dict[str, Any]) -> None:
    drop = [name for name in content["model"] if ".crossattention.output.LayerNorm.bias" in name]
    message = refusal(tmp_path, changed(content, lambda w: [w.pop(name) for name in drop]), bert)
    assert "text_encoder.encoder.layer.*.crossattention.output.LayerNorm.bias (2)" in message


@pytest.mark.parametrize("temperature", [-0.5, "0.75", None, float("nan"), True])
def test_temperatures_that_are_none(tmp_path: Path, bert: Path, content: dict[str, Any], temperature: object) -> None:
    assert "a number of at least 0" in refusal(tmp_path, {**content, "temperature": temperature}, bert)


def test_a_vocabulary_of_another_size(tmp_path: Path, content: dict[str, Any], bert: Path) -> None:
    other = AutoTokenizer.from_pretrained(bert)
    other.add_tokens(["green"])
    other.save_pretrained(tmp_path / "other")
    (tmp_path / "work").mkdir()
    message = refusal(tmp_path / "work", content, tmp_path / "other")
    assert f"it has {ROWS - 1} tokens, and the checkpoint embeddings for {ROWS}" in message
    assert "can't be loaded" in refusal(tmp_path / "work", content, tmp_path / "none")


def test_an_existing_folder_stays(tmp_path: Path, bert: Path, content: dict[str, Any]) -> None:
    torch.save(content, tmp_path / "checkpoint.pth")
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    for overwrite, says in ((False, "is not empty"), (True, "it holds no madtp.json, so this command")):
        with pytest.raises(UsageError, match=says):
            convert_madtp(tmp_path / "checkpoint.pth", out, str(bert), overwrite)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    (out / "madtp.json").write_text("{}")
    convert_madtp(tmp_path / "checkpoint.pth", out, str(bert), overwrite=True)
    assert read_madtp(str(out), 128).temperature == 0.75
