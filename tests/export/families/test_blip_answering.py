"""BLIP for question answering beside what the table of families shows: precision, refusals, manifests."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from catp.export.checkpoints.loading import load_checkpoint
from catp.export.engines.profiles import Limits
from catp.export.exporter import export_bundle
from catp.runtime import UsageError
from catp.runtime.bundle.chains import find_chain, make_chain
from catp.runtime.bundle.folder import open_bundle
from catp.runtime.bundle.manifest import Manifest
from catp.runtime.bundle.plans import ShapeRange


@pytest.fixture
def manifest(vqa_bundle: Path) -> Manifest:
    return open_bundle(vqa_bundle, verify=False).manifest


def test_weights_have_the_type_that_transformers_loads_them_in(vqa_checkpoint: Path) -> None:
    checkpoint = load_checkpoint(str(vqa_checkpoint))
    checkpoint.family.set_dtype(checkpoint.model, torch.float16)
    loaded = checkpoint.family.model_class().from_pretrained(vqa_checkpoint, dtype=torch.float16)
    assert {n: p.dtype for n, p in checkpoint.model.named_parameters()} == {
        n: p.dtype for n, p in loaded.named_parameters()
    }


def test_what_begins_and_ends_an_answer_is_what_the_code_of_the_model_says(manifest: Manifest) -> None:
    text = manifest.text
    assert (text.decoder_start_token_id, text.eos_token_ids, text.pad_token_id) == (62, (3,), 0)
    assert manifest.vote is None and text.image_token_id is None and text.max_positions == 64


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sep_token_id": None}, "text_config.sep_token_id in config.json is None"),
        ({"bos_token_id": 64}, "text_config.bos_token_id in config.json is 64, of a vocabulary of 64 tokens"),
        ({"is_decoder": False}, "its text encoder reads no image"),
        ({"hidden_size": 64}, "image tokens of 60 numbers and text tokens of 64"),
    ],
)
def test_configurations_that_cannot_answer_are_refused(
    vqa_checkpoint: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    copy = Path(shutil.copytree(vqa_checkpoint, tmp_path / "checkpoint"))
    config = json.loads((copy / "config.json").read_text())
    config["text_config"].update(changes)
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=words):
        load_checkpoint(str(copy))


@pytest.mark.parametrize("asked", [{"ratio": 0.5}, {"keep_mass": 0.5}, {"method": "l2-norm"}, {"positions": "compact"}])
def test_what_only_votes_can_do_is_refused(vqa_checkpoint: Path, tmp_path: Path, asked: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="has no query tokens to leave out; leave the option out"):
        export_bundle(str(vqa_checkpoint), tmp_path / "bundle", **asked)
    assert not (tmp_path / "bundle").exists()


def test_a_chain_is_found_by_its_graphs_alone() -> None:
    answering = make_chain("image-tokens", "question-answering")
    assert find_chain(answering.graphs, "question-answering") == answering
    assert answering.labels == ("vision", "prefill", "decode")
    with pytest.raises(ValueError, match="graphs: qformer_voting missing"):  # not taken for one without a vote
        find_chain(("vision_encoder", "language_model"), "decoder-only")
    with pytest.raises(ValueError, match="graphs: answer_decoder missing"):
        find_chain(("vision_encoder", "question_encoder"), "question-answering")


def test_a_manifest_that_says_otherwise_is_refused(manifest: Manifest, demo_bundle: Path) -> None:
    content = manifest.model_dump(mode="json")
    votes = open_bundle(demo_bundle, verify=False).manifest.model_dump(mode="json")["pruning"]
    with pytest.raises(ValidationError, match="pruning: there, and no graph of the bundle votes"):
        Manifest.model_validate({**content, "pruning": votes})
    graphs = json.loads(json.dumps(content["graphs"]))
    graphs["question_encoder"]["outputs"][0]["shape"][1] = 7
    with pytest.raises(ValidationError, match="cross_key_values are not those that question_encoder outputs"):
        Manifest.model_validate({**content, "graphs": graphs})


def test_profiles_serve_questions_and_all_image_tokens(manifest: Manifest) -> None:
    limits = Limits(max_batch=4, max_prompt=48, max_length=32)
    (prefill,) = limits.profiles(manifest.graphs["question_encoder"], manifest)
    assert prefill.shapes["input_ids"] == ShapeRange(min=(1, 1), opt=(1, 16), max=(4, 48))
    assert prefill.shapes["image_embeds"] == ShapeRange(min=(1, 50, 60), opt=(1, 50, 60), max=(4, 50, 60))
    (decode,) = limits.profiles(manifest.graphs["answer_decoder"], manifest)
    assert decode.shapes["cross_key_values.0.key"].max == (4, 4, 48, 15)
    assert decode.shapes["past_key_values.2.value"].max == (4, 4, 32, 15)
    for wrong in (Limits(ratio=0.5), Limits(fixed_ratio=True)):
        with pytest.raises(UsageError, match="has no query tokens to leave out"):
            wrong.check(manifest)
