"""What is not a usable checkpoint is refused in one line that says what to do."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Blip2Config, Blip2ForConditionalGeneration, BloomConfig

from catp.export.checkpoints.loading import load_checkpoint
from catp.export.demo import CHECKPOINT, samples
from catp.export.verification.reference import Reference
from catp.runtime import CatpError, UsageError
from catp.runtime.inputs.images import load_image


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(CHECKPOINT, tmp_path / "checkpoint"))


def edit_config(folder: Path, part: str | None = None, **changes: object) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    (config[part] if part else config).update(changes)
    path.write_text(json.dumps(config))


def refusal(model: Path | str, error: type[CatpError]) -> str:
    with pytest.raises(CatpError) as caught:
        load_checkpoint(str(model))
    assert type(caught.value) is error
    assert "\n" not in str(caught.value) and str(model) in str(caught.value)
    return str(caught.value)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    assert "no config.json" in refusal(tmp_path, UsageError)


def test_a_folder_without_weights(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    assert "no *.safetensors" in refusal(copy, UsageError)


def test_another_architecture(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())["text_config"]
    (copy / "config.json").write_text(json.dumps({**config, "model_type": "opt"}))
    message = refusal(copy, UsageError)
    assert "'opt'" in message and "accepted: BLIP-2 with a decoder-only language model" in message


def test_an_encoder_decoder_language_model_is_named(copy: Path) -> None:
    edit_config(copy, text_config={"model_type": "bart", "d_model": 32})
    message = refusal(copy, UsageError)
    assert "encoder-decoder language model is 'bart'" in message and "accepted: 't5'" in message


def test_another_family_is_named(copy: Path) -> None:
    edit_config(copy, model_type="llava")
    assert "'llava' with the decoder-only language model 'opt'" in refusal(copy, UsageError)


def test_a_language_model_without_position_ids_is_named(copy: Path) -> None:
    config = Blip2Config.from_pretrained(copy)
    config.text_config = BloomConfig(vocab_size=384, hidden_size=32, n_layer=1, n_head=2)
    Blip2ForConditionalGeneration(config).save_pretrained(copy)
    message = refusal(copy, UsageError)
    assert "'bloom' takes no position ids" in message and "such as OPT" in message


def test_broken_json(copy: Path) -> None:
    (copy / "config.json").write_text("{")
    refusal(copy, UsageError)


def test_a_field_of_the_wrong_type(copy: Path) -> None:
    edit_config(copy, "qformer_config", hidden_size="wide")
    refusal(copy, UsageError)


def test_a_folder_without_a_tokenizer(copy: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy / name).unlink()
    assert "no tokenizer" in refusal(copy, UsageError)


def test_checkpoints_from_before_image_tokens(copy: Path) -> None:
    path = copy / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["added_tokens"] = [t for t in tokenizer["added_tokens"] if t["content"] != "<image>"]
    path.write_text(json.dumps(tokenizer))
    edit_config(copy, image_token_index=None)
    checkpoint = load_checkpoint(str(copy))
    reference = Reference(checkpoint)
    sample = samples()[0]
    ids = reference.tokenize(sample.prompt)
    assert checkpoint.model.config.image_token_index not in ids
    tokens = reference.generate(reference.pixel_values([load_image(sample.image)]), ids, 8).token_ids
    assert checkpoint.tokenizer.decode(tokens, skip_special_tokens=True).strip() == sample.answer


def test_pickled_weights_are_refused_with_a_way_out(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    torch.save(weights, copy / "pytorch_model.bin")
    message = refusal(copy, UsageError)
    assert "pickled" in message and "save_pretrained" in message


def test_truncated_weights(copy: Path) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5000])
    refusal(copy, CatpError)


def test_missing_weights_are_never_made_up(copy: Path) -> None:
    path = copy / "model.safetensors"
    weights = load_file(path)
    del weights["query_tokens"]
    save_file(weights, path, metadata={"format": "pt"})
    assert "weights are missing: query_tokens" in refusal(copy, CatpError)


def test_weights_of_another_shape(copy: Path) -> None:
    edit_config(copy, "qformer_config", intermediate_size=256)
    refusal(copy, CatpError)


def test_a_hub_id_while_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = refusal("Salesforce/blip2-opt-2.7b", UsageError)
    assert "check the name and the network" in message
