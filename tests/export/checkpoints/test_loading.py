"""What is not a usable checkpoint is refused in one line that says what to do."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import save_instructblip_checkpoint, save_odd_checkpoint
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


def edit_tokenizer(folder: Path, pad: str | None, image_id: int | None) -> None:
    """Another pad token, or none, and another number for the placeholder, or none."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["added_tokens"] = [t for t in tokenizer["added_tokens"] if t["content"] != "<image>"]
    tokenizer["model"]["vocab"].pop("<image>", None)
    if image_id == 384:
        tokenizer["model"]["vocab"]["<spare>"] = 383  # so that the next number is the first without an embedding
    if image_id is not None:
        tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "content": "<image>", "id": image_id})
    path.write_text(json.dumps(tokenizer))
    path = folder / "tokenizer_config.json"
    settings = {name: value for name, value in json.loads(path.read_text()).items() if name != "pad_token"}
    path.write_text(json.dumps(settings if pad is None else {**settings, "pad_token": pad}))


@pytest.mark.parametrize(
    ("configured", "pad", "image_id"),
    [
        (None, "<pad>", None),
        (None, "</s>", None),  # with which prompts begin, too
        (None, None, None),
        (None, "</s>", 384),
        (384, "<pad>", 384),
        (9000, "<pad>", None),
        (-200, None, None),
        (2, "<pad>", None),  # </s>
    ],
)
def test_a_placeholder_needs_no_embedding_and_no_number_of_its_own(
    copy: Path, configured: int | None, pad: str | None, image_id: int | None
) -> None:
    edit_tokenizer(copy, pad, image_id)
    edit_config(copy, image_token_index=configured)
    (copy / "processor_config.json").unlink()
    checkpoint = load_checkpoint(str(copy))
    reference = Reference(checkpoint)
    for sample in samples()[:2]:
        ids = reference.tokenize(sample.prompt)
        if configured is None:
            assert checkpoint.placeholder_id == (image_id or 383) not in ids
        tokens = reference.generate(reference.pixel_values([load_image(sample.image)]), ids, 8).token_ids
        assert checkpoint.tokenizer.decode(tokens, skip_special_tokens=True).strip() == sample.answer
    # Nothing of the run is left on the model.
    assert checkpoint.model.config.image_token_index == checkpoint.placeholder_id != -1
    assert not checkpoint.model.get_input_embeddings()._forward_pre_hooks


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
    message = refusal(copy, CatpError)
    assert "intermediate.dense.bias" in message or "intermediate_query.dense" in message
    assert "instead of [256" in message


@pytest.mark.parametrize(
    ("part", "settings", "named"),
    [
        (None, {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantised by gptq"),
        (None, {"quantization_config": {"load_in_4bit": True}}, "quantised by load_in_4bit"),
        (None, {"quantization_config": {"quant_method": "of next year"}}, "quantised by of next year"),
        ("text_config", {"quantization_config": {"quant_method": "awq"}}, "quantised by awq"),
        ("vision_config", {"quantization_config": {"quant_method": "fp8"}}, "quantised by fp8"),
        (None, {"compression_config": {"format": "pack-quantized"}}, "quantised by a library (compression_config"),
    ],
)
def test_quantised_checkpoints_are_refused_before_their_weights_are_read(
    copy: Path, part: str | None, settings: dict[str, Any], named: str
) -> None:
    edit_config(copy, part, **settings)
    (copy / "model.safetensors").write_bytes(b"never read")
    message = refusal(copy, UsageError)
    assert named in message and "give the unquantised checkpoint" in message


def test_a_quantisation_that_is_none(copy: Path) -> None:
    edit_config(copy, quantization_config=None)
    assert load_checkpoint(str(copy))


@pytest.mark.parametrize(
    ("rope", "named"),
    [
        ({"rope_type": "dynamic", "factor": 2.0}, "rope_type 'dynamic'"),
        ({"type": "dynamic", "factor": 4.0}, "rope_type 'dynamic'"),
        ({"rope_type": "longrope", "short_factor": [1.0] * 6, "long_factor": [2.0] * 6, "factor": 2.0}, "'longrope'"),
    ],
)
def test_positions_that_change_with_the_length_are_refused(tmp_path: Path, rope: dict[str, Any], named: str) -> None:
    folder = save_odd_checkpoint(tmp_path / "odd")
    edit_config(folder, "text_config", rope_parameters=None, rope_scaling=rope, rope_theta=10000.0)
    message = refusal(folder, UsageError)
    assert named in message and "linear, yarn, llama3" in message


@pytest.mark.parametrize("rope", [{"rope_type": "linear", "factor": 2.0}, {"rope_type": "yarn", "factor": 2.0}])
def test_positions_that_do_not_change_are_loaded(tmp_path: Path, rope: dict[str, Any]) -> None:
    folder = save_odd_checkpoint(tmp_path / "odd")
    edit_config(folder, "text_config", rope_parameters=None, rope_scaling=rope, rope_theta=10000.0)
    assert load_checkpoint(str(folder)).model.config.text_config.rope_parameters["rope_type"] == rope["rope_type"]


def test_words_of_another_width_than_the_language_model(copy: Path) -> None:
    edit_config(copy, "text_config", word_embed_proj_dim=64)
    message = refusal(copy, UsageError)
    assert "words of 64 dimensions and computes in 128" in message and "word_embed_proj_dim" in message


@pytest.mark.parametrize(
    ("part", "settings"),
    [
        ("qformer_config", {"hidden_act": "gelu_of_next_year"}),
        ("text_config", {"activation_function": "tanhh"}),
        ("vision_config", {"hidden_act": 7}),
        ("text_config", {"num_attention_heads": 7}),
        ("vision_config", {"patch_size": 0}),
        (None, {"num_query_tokens": "many"}),
        (None, {"dtype": "float99"}),
    ],
)
def test_what_transformers_can_not_make_a_model_of(copy: Path, part: str | None, settings: dict[str, Any]) -> None:
    edit_config(copy, part, **settings)
    with pytest.raises(CatpError) as caught:
        load_checkpoint(str(copy))
    assert "\n" not in str(caught.value) and str(copy) in str(caught.value)


def test_an_image_processor_or_a_tokenizer_that_can_not_be_loaded(copy: Path) -> None:
    given = (copy / "processor_config.json").read_text()
    (copy / "processor_config.json").write_text(json.dumps({"image_processor": {"image_processor_type": "Unheard"}}))
    (copy / "preprocessor_config.json").unlink()
    assert "its image processor can't be loaded" in refusal(copy, CatpError)
    (copy / "processor_config.json").write_text(given)
    (copy / "tokenizer.json").write_text("{}")
    assert "its tokenizer can't be loaded" in refusal(copy, CatpError)


def test_a_q_former_without_its_tokenizer(tmp_path: Path) -> None:
    folder = save_instructblip_checkpoint(tmp_path / "instructed")
    (folder / "qformer_tokenizer" / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    assert "in the folder qformer_tokenizer/, " in refusal(folder, CatpError)
    shutil.rmtree(folder / "qformer_tokenizer")
    assert "in the folder qformer_tokenizer/, is missing; save its processor" in refusal(folder, UsageError)


def test_a_hub_id_while_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = refusal("Salesforce/blip2-opt-2.7b", UsageError)
    assert "check the name and the network" in message
