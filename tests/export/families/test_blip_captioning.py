"""BLIP for captions beside what the table of families shows: precision, pruning, conversion, refusals, plans."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from blip_official import official_content, save_bert_tokenizer, tiny_blip
from pydantic import ValidationError
from transformers import BlipForConditionalGeneration, BlipProcessor

from catp.export.checkpoints.loading import load_checkpoint
from catp.export.conversion.madtp import convert_madtp
from catp.export.demo import scenes
from catp.export.engines.profiles import Limits
from catp.export.exporter import export_bundle
from catp.export.image_encoders.plan import EncoderOptions
from catp.export.verification.reference import Reference
from catp.runtime import Pipeline, UsageError
from catp.runtime.bundle.chains import find_chain, make_chain
from catp.runtime.bundle.folder import open_bundle
from catp.runtime.bundle.footprint import cache_bytes, estimate
from catp.runtime.bundle.manifest import Manifest
from catp.runtime.bundle.plans import ShapeRange
from catp.runtime.image_sides.pruned_encoder import EncoderWish

OFFICIAL: dict[str, Any] = {"num_beams": 3, "max_length": 20, "min_length": 5}
"""BLIP's own evaluation."""


@pytest.fixture
def manifest(caption_bundle: Path) -> Manifest:
    return open_bundle(caption_bundle, verify=False).manifest


def test_weights_have_the_type_that_transformers_loads_them_in(caption_checkpoint: Path) -> None:
    checkpoint = load_checkpoint(str(caption_checkpoint))
    checkpoint.family.set_dtype(checkpoint.model, torch.float16)
    loaded = checkpoint.family.model_class().from_pretrained(caption_checkpoint, dtype=torch.float16)
    assert {n: p.dtype for n, p in checkpoint.model.named_parameters()} == {
        n: p.dtype for n, p in loaded.named_parameters()
    }


def test_what_begins_and_ends_a_caption_is_what_the_code_of_the_model_says(manifest: Manifest) -> None:
    text = manifest.text
    assert (text.decoder_start_token_id, text.eos_token_ids, text.pad_token_id) == (62, (3,), 0)
    assert manifest.vote is None and text.image_token_id is None and text.max_positions == 64
    assert manifest.writes_text and manifest.model.language == "captioning"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sep_token_id": None}, "text_config.sep_token_id in config.json is None"),
        ({"bos_token_id": 63}, "text_config.bos_token_id in config.json is 63, of a vocabulary of 63 tokens"),
        ({"is_decoder": False}, "its text decoder reads no image"),
    ],
)
def test_configurations_that_cannot_write_are_refused(
    caption_checkpoint: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    copy = Path(shutil.copytree(caption_checkpoint, tmp_path / "checkpoint"))
    config = json.loads((copy / "config.json").read_text())
    config["text_config"].update(changes)
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=words):
        load_checkpoint(str(copy))


def test_a_tokenizer_without_its_frame_is_refused(caption_checkpoint: Path, tmp_path: Path) -> None:
    """Else the first and the last word of every beginning would be lost."""
    copy = Path(shutil.copytree(caption_checkpoint, tmp_path / "checkpoint"))
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    tokenizer["post_processor"] = None
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UsageError, match="its tokenizer adds 0 tokens to a text"):
        load_checkpoint(str(copy))


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"ratio": 0.5}, "has no query tokens to leave out; leave the option out"),
        ({"method": "l2-norm"}, "has no query tokens to leave out; leave the option out"),
        ({"encoder": EncoderOptions("cls", 0.8, text_flops=0.7)}, "--text-encoder-flops: BLIP for captions has no"),
    ],
)
def test_what_the_model_has_not_is_refused(
    caption_checkpoint: Path, tmp_path: Path, asked: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        export_bundle(str(caption_checkpoint), tmp_path / "bundle", **asked)
    assert not (tmp_path / "bundle").exists()


def test_a_chain_is_found_by_its_graphs_alone() -> None:
    captioning = make_chain("image-tokens", "captioning")
    assert find_chain(captioning.graphs, "captioning") == captioning
    assert captioning.labels == ("vision", "prefill", "decode")
    with pytest.raises(ValueError, match="graphs: image_keys missing"):
        find_chain(("vision_encoder", "caption_decoder"), "captioning")


def test_a_manifest_that_says_otherwise_is_refused(manifest: Manifest) -> None:
    content = manifest.model_dump(mode="json")
    graphs = json.loads(json.dumps(content["graphs"]))
    graphs["image_keys"]["outputs"][0]["shape"][1] = 7
    with pytest.raises(ValidationError, match="cross_key_values are not those that image_keys outputs"):
        Manifest.model_validate({**content, "graphs": graphs})
    graphs = json.loads(json.dumps(content["graphs"]))
    graphs["caption_decoder"]["inputs"] = [
        tensor for tensor in graphs["caption_decoder"]["inputs"] if tensor["name"] != "last_indices"
    ]
    with pytest.raises(ValidationError, match="last_indices is missing"):
        Manifest.model_validate({**content, "graphs": graphs})


def test_profiles_serve_beginnings_steps_and_all_image_tokens(manifest: Manifest) -> None:
    limits = Limits(max_batch=4, max_prompt=24, max_length=48)
    limits.check(manifest)
    (keys,) = limits.profiles(manifest.graphs["image_keys"], manifest)
    assert keys.shapes["image_embeds"] == ShapeRange(min=(1, 50, 60), opt=(1, 50, 60), max=(4, 50, 60))
    prefill, decode = limits.profiles(manifest.graphs["caption_decoder"], manifest)
    assert prefill.shapes["input_ids"] == ShapeRange(min=(1, 1), opt=(1, 16), max=(4, 24))
    assert decode.shapes["input_ids"].max == (4, 1)
    assert decode.shapes["cross_key_values.0.key"].max == (4, 4, 50, 10)
    assert decode.shapes["past_key_values.2.value"].max == (4, 4, 48, 10)
    with pytest.raises(UsageError, match="--max-length 48: 0 image tokens and a prompt of 64 do not fit"):
        Limits(max_prompt=64, max_length=48).check(manifest)


def test_memory_counts_keys_and_values_of_a_whole_picture(manifest: Manifest) -> None:
    decoder = manifest.graphs["caption_decoder"]
    assert cache_bytes(decoder, 2, 64) == 2 * 64 * 2 * 3 * 40 * 4
    assert estimate(manifest, 2, 64, False).cache == cache_bytes(decoder, 2, 64) + 2 * 50 * 2 * 3 * 40 * 4


@pytest.mark.heavy  # two exports
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_passes_its_gates(caption_checkpoint: Path, tmp_path: Path, precision: Any) -> None:
    bundle = export_bundle(str(caption_checkpoint), tmp_path / "bundle", precision=precision)
    emulated = {f"{graph} ({precision} emulated in float32)" for graph in bundle.manifest.graphs}
    assert {check.subject for check in bundle.manifest.parity} >= emulated
    assert bundle.manifest.graphs["image_keys"].input("image_embeds").dtype == (
        "float16" if precision == "fp16" else "float32"
    )


@pytest.mark.heavy  # an export
@pytest.mark.parametrize("rule", ["cls", "tome"])
def test_captions_of_what_a_pruned_encoder_leaves(caption_checkpoint: Path, tmp_path: Path, rule: Any) -> None:
    """Hugging Face's search, of which the image tokens are those that plain PyTorch keeps."""
    options = EncoderOptions(rule, 0.75)
    bundle = export_bundle(str(caption_checkpoint), tmp_path / "bundle", encoder=options)
    pipeline, checkpoint = Pipeline.load(bundle.path), load_checkpoint(str(caption_checkpoint))
    spec = bundle.manifest.encoder_pruning
    assert spec is not None and spec.kept_tokens is not None
    image = next(iter(scenes.examples(1, seed=9))).image
    (answer,) = pipeline.generate([image], ["what is"], **OFFICIAL)
    left = spec.kept_tokens[-1] + spec.added + 1
    assert answer.num_kept == left < 50
    reference = Reference(checkpoint)
    embeds = pipeline.encode(pipeline.preprocess([image]))["image_embeds"]
    ids = [checkpoint.generation_config.decoder_start_token_id, *reference.tokenize("what is")[1:-1]]
    found = checkpoint.model.text_decoder.generate(
        input_ids=torch.tensor([ids]),
        encoder_hidden_states=torch.from_numpy(embeds.numpy().copy()),
        eos_token_id=3,
        pad_token_id=0,
        **OFFICIAL,
    )
    assert answer.token_ids == found[0, len(ids) :].tolist()
    fewer = EncoderWish(kept_tokens=tuple(count - 2 for count in spec.kept_tokens))
    assert pipeline.generate([image], ["what is"], encoder=fewer)[0].num_kept == left - 2


@pytest.mark.heavy  # two exports
def test_an_official_checkpoint_is_converted_pruned_and_answers(tmp_path: Path) -> None:
    config = tiny_blip("captions").config
    config.text_config.max_position_embeddings = 64  # what an export checks has more words than 24
    original = BlipForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in original.parameters():
            parameter.normal_(0, 0.1)
    torch.save(official_content(original, "captions"), tmp_path / "checkpoint.pth")
    bert = save_bert_tokenizer(tmp_path / "bert")
    convert_madtp(tmp_path / "checkpoint.pth", tmp_path / "converted", str(bert))
    image = next(iter(scenes.examples(1, seed=9))).image
    dense = export_bundle(str(tmp_path / "converted"), tmp_path / "dense")
    (answer,) = Pipeline.load(dense.path).generate([image], ["it is"], **OFFICIAL)
    model = BlipForConditionalGeneration.from_pretrained(tmp_path / "converted").eval()
    processor = BlipProcessor.from_pretrained(tmp_path / "converted", backend="pil")
    inputs = processor(images=image, text="it is", return_tensors="pt")
    begun = inputs["input_ids"].shape[1] - 1
    assert answer.token_ids == model.generate(**inputs, **OFFICIAL)[0, begun:].tolist()
    for form, more in (("schedule", {"flops": 0.7}), ("dynamic", {})):
        pruned = export_bundle(
            str(tmp_path / "converted"),
            tmp_path / form,
            encoder=EncoderOptions(form=form, **more),  # type: ignore[arg-type]
        )
        spec = pruned.manifest.encoder_pruning
        assert spec is not None and (spec.rule, spec.form) == ("madtp", form)
        assert pruned.manifest.question_pruning is None
        (found,) = Pipeline.load(pruned.path).generate([image], ["it is"], max_new_tokens=4)
        assert 1 < found.num_kept <= 17
