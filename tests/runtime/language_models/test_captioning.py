"""A decoder that reads image tokens: captions against Hugging Face's, and what can't be asked of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BlipForConditionalGeneration, BlipProcessor

from catp.export.demo import scenes
from catp.runtime import Pipeline, UsageError
from catp.runtime.language_models.base import Batch

BEGINNINGS = ["", "what is red", "Question: what is in the bottom right?", "where"]
SEARCHES: list[dict[str, Any]] = [
    {"max_new_tokens": 7},
    {"num_beams": 3, "max_length": 40, "min_length": 32},
    {"max_new_tokens": 7, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
    {"num_beams": 2, "max_new_tokens": 6, "min_new_tokens": 4, "length_penalty": 0.4},
]


@pytest.fixture(scope="module")
def captioning(caption_bundle: Path) -> Pipeline:
    return Pipeline.load(caption_bundle)


@pytest.fixture(scope="module")
def hugging_face(caption_checkpoint: Path) -> tuple[Any, Any]:
    model = BlipForConditionalGeneration.from_pretrained(caption_checkpoint).eval()
    return model, BlipProcessor.from_pretrained(caption_checkpoint, backend="pil")


def pictures(count: int) -> list[Any]:
    return [example.image for example in scenes.examples(count, seed=9)]


def wanted(hugging_face: tuple[Any, Any], image: Any, beginning: str, **options: Any) -> list[int]:
    """The tokens that `generate()` gives after what the caption begins with; pads left out."""
    model, processor = hugging_face
    given = {"text": beginning} if beginning else {}
    inputs = processor(images=image, return_tensors="pt", **given)
    begun = inputs["input_ids"].shape[1] - 1 if beginning else 1
    found = model.generate(**inputs, **options)[0, begun:].tolist()
    return found[: found.index(3) + 1] if 3 in found else found


@pytest.mark.parametrize("options", SEARCHES)
def test_beginnings_of_different_length_go_on_as_each_alone(
    captioning: Pipeline, hugging_face: tuple[Any, Any], options: dict[str, Any]
) -> None:
    images = pictures(len(BEGINNINGS))
    together = captioning.generate(images, BEGINNINGS, **options)
    for image, beginning, answer in zip(images, BEGINNINGS, together):
        assert answer.token_ids == wanted(hugging_face, image, beginning, **options)
        assert answer.answer == captioning.detokenize(answer.token_ids)  # what follows, without its beginning
    assert len({tuple(answer.token_ids) for answer in together}) > 2


def test_lengths_count_the_beginning(captioning: Pipeline, hugging_face: tuple[Any, Any]) -> None:
    (image,), beginning = pictures(1), BEGINNINGS[1]
    begun = len(captioning.tokenize(beginning)) - 1
    options: dict[str, Any] = {"max_length": begun + 6, "min_length": begun + 6}
    (answer,) = captioning.generate([image], [beginning], **options)
    assert len(answer.token_ids) == 6
    assert answer.token_ids == wanted(hugging_face, image, beginning, **options)


def test_captions_of_one_image_share_its_keys(captioning: Pipeline) -> None:
    (image,) = pictures(1)
    alone = [captioning.generate([image], [beginning])[0] for beginning in BEGINNINGS]
    assert [answer.token_ids for answer in captioning.ask(image, BEGINNINGS)] == [a.token_ids for a in alone]
    assert alone[0].num_kept == 50 and alone[0].kept_indices == list(range(50))
    assert "".join(captioning.stream(image, BEGINNINGS[1])).strip() == alone[1].answer


def test_seats_answer_as_the_pipeline_does(captioning: Pipeline) -> None:
    images = pictures(2)
    expected = [captioning.generate([i], [b], max_new_tokens=5)[0] for i, b in zip(images, BEGINNINGS[:2])]
    seats = captioning.open_seats(2, 48)
    taken = []
    for image, beginning in zip(images, BEGINNINGS):
        encoded = captioning.encode(captioning.preprocess([image]))
        pruned = captioning.prune(encoded, captioning.num_kept())
        batch = Batch(pruned.kept_embeds, pruned.kept_indices, 0, [captioning.tokenize(beginning)])
        taken.append(seats.admit(batch, 5))
    tokens: list[list[int]] = [[seats.token(seat)] for seat in taken]
    for _ in range(4):
        running = [row for row in range(2) if tokens[row][-1] != 3]
        seats.step({taken[row]: tokens[row][-1] for row in running})
        for row in running:
            tokens[row].append(seats.token(taken[row]))
    assert tokens == [answer.token_ids for answer in expected]


def test_a_caption_ends_where_positions_do(captioning: Pipeline, hugging_face: tuple[Any, Any]) -> None:
    first, second = pictures(2)
    with pytest.raises(UsageError, match="prompt: 71 tokens, and this model has 64 positions"):
        captioning.generate([first], ["red " * 70])
    # Its neighbour goes on for longer than it has positions.
    long = " ".join(["red"] * 50)
    begun = len(captioning.tokenize(long)) - 1
    assert begun == 51
    answers = captioning.generate([first, second], [long, ""], max_new_tokens=100, min_new_tokens=99)
    assert [len(answer.token_ids) for answer in answers] == [64 - 51 + 1, 64]
    room: dict[str, Any] = {"max_new_tokens": 13, "min_new_tokens": 13}
    assert answers[0].token_ids[:13] == wanted(hugging_face, first, long, **room)


def test_answers_are_not_ranked(captioning: Pipeline) -> None:
    with pytest.raises(UsageError, match="is BLIP for captions, whose answers can't be ranked"):
        captioning.rank(pictures(1), ["what?"], ["red"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ratio": 0.5}, "ratio 0.5: .* has no query tokens to leave out"),
        ({"keep_mass": 0.5}, "keep mass 0.5: .* has no query tokens to leave out"),
        ({"positions": "compact"}, "positions compact: .* leave it out"),
    ],
)
def test_nothing_is_left_out(captioning: Pipeline, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        captioning.generate(pictures(1), [""], **options)


def test_image_tokens_are_a_free_count(captioning: Pipeline, hugging_face: tuple[Any, Any]) -> None:
    """An encoder that prunes gives fewer: the tokens that are there are what is read."""
    model, _ = hugging_face
    embeds = torch.randn(1, 17, 60, generator=torch.Generator().manual_seed(0))
    ids = captioning.tokenize(BEGINNINGS[1])
    with torch.no_grad():
        begun = torch.tensor([[model.config.text_config.bos_token_id, *ids[1:-1]]])
        logits = model.text_decoder(begun, encoder_hidden_states=embeds).logits[:, -1]
    batch = Batch(embeds.numpy(), np.arange(17)[None], 0, [ids])
    found = captioning.language_model.begin(batch, 1, output="logits").prefill()
    torch.testing.assert_close(torch.from_numpy(found.copy()), logits, atol=1e-4, rtol=1e-4)
