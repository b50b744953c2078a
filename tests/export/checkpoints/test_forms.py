"""Checkpoints as users have them: in shards, in half precision, fine-tuned, with new tokens, from before processors."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, Blip2ForConditionalGeneration
from typer.testing import CliRunner

from catp.export.checkpoints.loading import load_checkpoint
from catp.export.checkpoints.weight_files import stored_dtype, weight_files
from catp.export.commands.export import app
from catp.export.demo import CHECKPOINT, samples
from catp.runtime import Pipeline, UsageError
from catp.runtime.commands.inspect import app as inspect_app
from catp.runtime.inputs.images import load_image

VALUE = "language_model.model.decoder.layers.1.self_attn.v_proj"
NEW_TOKENS = ["tangerine", "chartreuse", "<thing>"]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bfloat16 in shards, three tokens more, a head of its own, and an image processor as in 2023."""
    folder = tmp_path_factory.mktemp("forms") / "tuned"
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    tokenizer.add_tokens(NEW_TOKENS)
    model = Blip2ForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32)
    model.resize_token_embeddings(len(tokenizer))
    head = model.get_input_embeddings().weight.detach().clone()
    model.language_model.lm_head.weight = torch.nn.Parameter(head + 0.02 * torch.randn_like(head))
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = False
    model.bfloat16().save_pretrained(folder, max_shard_size="1MB")
    tokenizer.save_pretrained(folder)
    for name in ("processor_config.json", "preprocessor_config.json"):
        (folder / name).unlink(missing_ok=True)
    given = json.loads((CHECKPOINT / "preprocessor_config.json").read_text())
    kept = ("do_normalize", "do_rescale", "do_resize", "image_mean", "image_std", "resample", "rescale_factor")
    old = {name: given[name] for name in kept} | {"size": given["size"]["height"], "processor_class": "Blip2Processor"}
    old["feature_extractor_type"] = "BlipImageProcessor"
    (folder / "preprocessor_config.json").write_text(json.dumps(old))
    return folder


@pytest.mark.heavy  # one more export; reading the forms is tested beside it
def test_they_export_and_answer_as_hugging_face_does(tuned: Path, tmp_path: Path) -> None:
    assert len(list(tuned.glob("model-*.safetensors"))) > 2 and stored_dtype(weight_files(str(tuned))) == torch.bfloat16
    a, b = torch.randn(3, 128), 0.1 * torch.randn(128, 3)
    (adapter := tmp_path / "adapter").mkdir()
    names = {f"base_model.model.{VALUE}.lora_A.weight": a, f"base_model.model.{VALUE}.lora_B.weight": b}
    save_file(names, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 3, "lora_alpha": 6}))

    arguments = ["--model", str(tuned), "--adapter", str(adapter), "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    pipeline = Pipeline.load(tmp_path / "out")
    assert (pipeline.manifest.model.id, pipeline.manifest.model.adapter) == ("tuned", "adapter")
    assert "tuned with adapter adapter: " in CliRunner().invoke(inspect_app, [str(tmp_path / "out")]).output

    model = Blip2ForConditionalGeneration.from_pretrained(tuned, dtype=torch.float32).eval()
    model.get_submodule(VALUE).register_forward_hook(lambda _, inputs, output: output + 2 * inputs[0] @ a.T @ b.T)
    processor = load_checkpoint(str(tuned)).image_processor
    for sample in samples()[:2]:
        prompt = f"tangerine {sample.prompt}<thing>"
        ids = pipeline.tokenize(prompt)
        assert ids == AutoTokenizer.from_pretrained(tuned)(prompt).input_ids and max(ids) >= 384
        image = load_image(sample.image)
        inputs = torch.tensor([[model.config.image_token_index] * 32 + ids])
        with torch.no_grad():
            tokens = model.generate(
                pixel_values=processor([image], return_tensors="pt").pixel_values,
                input_ids=inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=6,
                do_sample=False,
            )
        (answer,) = pipeline.generate([image], [prompt], ratio=0, max_new_tokens=6)
        assert answer.token_ids == tokens[0].tolist()[-len(answer.token_ids) :]


def test_tokens_without_embeddings_are_refused(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(CHECKPOINT, tmp_path / "checkpoint"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(NEW_TOKENS)
    tokenizer.save_pretrained(folder)
    with pytest.raises(
        UsageError, match=r"tokens up to \d+, and its language model has embeddings for 384; call resize"
    ):
        load_checkpoint(str(folder))


def test_mixed_types_are_held_exactly(tmp_path: Path) -> None:
    one, other = tmp_path / "one.safetensors", tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(2, dtype=torch.float16)}, one)
    assert stored_dtype([one]) == torch.float16
    save_file({"b": torch.zeros(2)}, other)
    assert stored_dtype([one, other]) == torch.float32
