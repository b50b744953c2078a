"""A question encoder that reads image tokens: answers against Hugging Face's, and what can't be asked of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BlipForQuestionAnswering, BlipProcessor

from catp.export.demo import scenes
from catp.runtime import Pipeline, UsageError

PROMPTS = ["what is red?", "Question: what is in the bottom right? Answer:", "where"]


@pytest.fixture(scope="module")
def answering(vqa_bundle: Path) -> Pipeline:
    return Pipeline.load(vqa_bundle)


def test_the_official_search_finds_what_hugging_face_finds(answering: Pipeline, vqa_checkpoint: Path) -> None:
    """Three beams, at most ten tokens with the one that begins, at least one: BLIP's own evaluation."""
    official = {"num_beams": 3, "max_length": 10, "min_length": 1}
    images = [example.image for example in scenes.examples(len(PROMPTS), seed=9)]
    processor = BlipProcessor.from_pretrained(vqa_checkpoint, backend="pil")
    model = BlipForQuestionAnswering.from_pretrained(vqa_checkpoint).eval()
    found = answering.generate(images, PROMPTS, **official)  # type: ignore[arg-type]
    for image, prompt, answer in zip(images, PROMPTS, found):
        tokens = model.generate(**processor(images=image, text=prompt, return_tensors="pt"), **official)[0, 1:]
        assert answer.token_ids == tokens.tolist()
        assert answer.answer == processor.decode(tokens, skip_special_tokens=True).strip()


def test_questions_about_one_image_share_its_tokens(answering: Pipeline) -> None:
    image = next(iter(scenes.examples(1, seed=9))).image
    alone = [answering.generate([image], [prompt])[0] for prompt in PROMPTS]
    assert [answer.token_ids for answer in answering.ask(image, PROMPTS)] == [answer.token_ids for answer in alone]
    assert alone[0].num_kept == 50 and alone[0].kept_indices == list(range(50))
    assert "".join(answering.stream(image, PROMPTS[1])).strip() == alone[1].answer


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ratio": 0.5}, "ratio 0.5: .* has no query tokens to leave out"),
        ({"keep_mass": 0.5}, "keep mass 0.5: .* has no query tokens to leave out"),
        ({"positions": "compact"}, "positions compact: .* leave it out"),
    ],
)
def test_nothing_is_left_out(answering: Pipeline, options: dict[str, Any], words: str) -> None:
    image = next(iter(scenes.examples(1, seed=9))).image
    with pytest.raises(UsageError, match=words):
        answering.generate([image], ["what?"], **options)
    assert answering.generate([image], ["what?"], ratio=0, positions="original")


def test_question_and_answer_end_where_positions_do(answering: Pipeline) -> None:
    image = next(iter(scenes.examples(1, seed=9))).image
    with pytest.raises(UsageError, match="prompt: 72 tokens, and this model has 64 positions"):
        answering.generate([image], ["red " * 70])
    (answer,) = answering.generate([image], ["what?"], max_new_tokens=100, min_new_tokens=99)
    assert len(answer.token_ids) == 64


def test_image_tokens_are_a_free_count(answering: Pipeline, vqa_checkpoint: Path) -> None:
    """An encoder that prunes gives fewer: the tokens that are there are what is read."""
    from catp.runtime.language_models.base import Batch

    model = BlipForQuestionAnswering.from_pretrained(vqa_checkpoint).eval()
    embeds = torch.randn(1, 17, 60, generator=torch.Generator().manual_seed(0))
    ids = answering.tokenize(PROMPTS[0])
    batch = Batch(embeds.numpy(), torch.arange(17)[None].numpy(), 0, [ids])
    with torch.no_grad():
        hidden = model.text_encoder(torch.tensor([ids]), encoder_hidden_states=embeds).last_hidden_state
        start = torch.tensor([[model.decoder_start_token_id]])
        wanted = model.text_decoder(start, encoder_hidden_states=hidden).logits[:, 0]
    found = answering.language_model.begin(batch, 1, output="logits").prefill()
    torch.testing.assert_close(torch.from_numpy(found.copy()), wanted, atol=1e-4, rtol=1e-4)
