"""Ranked answers against Hugging Face's model, which is fed whole answers at once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, BlipForQuestionAnswering
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from typer.testing import CliRunner

from catp.export.demo import scenes
from catp.runtime import Pipeline, UsageError
from catp.runtime.commands.lists import read_list
from catp.runtime.commands.run import app

ANSWERS = ["red", "a red circle", "in the top left", "blue", "red circle", "3", "yes", "a red circle"]


@pytest.fixture(scope="module")
def answering(vqa_bundle: Path) -> Pipeline:
    return Pipeline.load(vqa_bundle)


@pytest.fixture(scope="module")
def asked() -> tuple[list[Image.Image], list[str]]:
    """Of different length; the first two are about one image."""
    first, second = scenes.examples(2, seed=7)
    return [first.image, first.image, second.image], ["what is red?", first.question.prompt, second.question.prompt]


@torch.no_grad()
def reference(checkpoint: Path, image: Image.Image, question: str, k: int) -> dict[int, float]:
    """Scores of the k answers whose first token is likeliest: cross-entropy by PyTorch, padded, all in one call."""
    model = BlipForQuestionAnswering.from_pretrained(checkpoint).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    pixels = BlipImageProcessorPil.from_pretrained(checkpoint)([image], return_tensors="pt").pixel_values
    ids = tokenizer(ANSWERS, padding=True, return_tensors="pt")
    read = ids.input_ids.clone()
    read[:, 0] = model.decoder_start_token_id
    embeds = model.vision_model(pixels).last_hidden_state
    words = tokenizer(question, return_tensors="pt")
    hidden = model.text_encoder(**words, encoder_hidden_states=embeds).last_hidden_state
    logits = model.text_decoder(
        read,
        attention_mask=ids.attention_mask,
        encoder_hidden_states=hidden.expand(len(ANSWERS), -1, -1),
    ).logits[:, :-1]
    targets = read[:, 1:].masked_fill(ids.attention_mask[:, 1:] == 0, -100)
    loss = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), targets, reduction="none", label_smoothing=0.1, ignore_index=-100
    )
    first = torch.softmax(logits[0, 0], -1)[read[:, 1]]
    chosen = sorted(range(len(ANSWERS)), key=lambda row: (-float(first[row]), row))[:k]
    return {row: -float(loss[row].sum()) for row in chosen}


@pytest.mark.parametrize(("k", "rows"), [(128, 32), (128, 3), (5, 2), (1, 1)])
def test_scores_are_those_of_hugging_face(
    answering: Pipeline, asked: tuple[list[Image.Image], list[str]], vqa_checkpoint: Path, k: int, rows: int
) -> None:
    images, prompts = asked
    for found, image, prompt in zip(answering.rank(images, prompts, ANSWERS, k, rows), images, prompts):
        wanted = reference(vqa_checkpoint, image, prompt, k)
        best_first = sorted(wanted, key=lambda row: -wanted[row])
        assert [answer.score for answer in found] == pytest.approx([wanted[row] for row in best_first], abs=1e-4)
        assert [answer.answer for answer in found] == [ANSWERS[row] for row in best_first]
    assert np.ptp(list(wanted.values())) > 1 or k == 1  # or else the order would be chance


def test_a_question_is_scored_as_alone(answering: Pipeline, asked: tuple[list[Image.Image], list[str]]) -> None:
    images, prompts = asked
    alone = [answering.rank([image], [prompt], ANSWERS)[0] for image, prompt in zip(images, prompts)]
    for a, b in zip(answering.rank(images, prompts, ANSWERS), alone):
        assert [x.score for x in a] == pytest.approx([x.score for x in b], abs=1e-5)


def test_what_cannot_be_ranked_is_refused(answering: Pipeline, pipeline: Pipeline) -> None:
    image = next(iter(scenes.examples(1, seed=7))).image
    for answers, words in (([], "none to rank"), (["red", ""], "has no words"), (["[SEP]"], "special token")):
        with pytest.raises(UsageError, match=words):
            answering.rank([image], ["what?"], answers)
    with pytest.raises(UsageError, match="this model has 64 positions"):
        answering.rank([image], ["what?"], ["red " * 64])
    with pytest.raises(UsageError, match="k 0: give at least 1"):
        answering.rank([image], ["what?"], ["red"], k=0)
    with pytest.raises(UsageError, match="accepted: BLIP for question answering"):
        pipeline.rank([image], ["what?"], ["red"])


def test_the_command_reads_answers_from_a_list_or_a_file(vqa_bundle: Path, tmp_path: Path) -> None:
    picture, lines, listed = tmp_path / "a.png", tmp_path / "answers.txt", tmp_path / "answers.json"
    next(iter(scenes.examples(1, seed=7))).image.save(picture)
    lines.write_text("red\n\nblue circle\n")
    listed.write_text('["red", "blue circle"]')
    question = [str(vqa_bundle), "--image", str(picture), "--prompt", "what is red?"]
    results = [
        CliRunner().invoke(app, [*question, "--answers", given, "--json"])
        for given in (str(lines), str(listed), "red, blue circle")
    ]
    assert len({result.stdout for result in results}) == 1 and results[0].exit_code == 0
    found = json.loads(results[0].stdout)
    assert {answer["answer"] for answer in found} == {"red", "blue circle"} and found[0]["score"] >= found[1]["score"]
    refused = CliRunner().invoke(app, [*question, "--answers", "red", "--num-beams", "3", "--stream"])
    assert refused.exit_code == 2 and "leave out --num-beams, --stream" in refused.stderr
    (tmp_path / "answers.json").write_text('{"red": 1}')
    with pytest.raises(UsageError, match="not a list of texts"):
        read_list("--answers", str(listed))
