"""A Q-Former that reads the prompt too: what the pipeline gives it, and what it refuses."""

from pathlib import Path

import numpy as np
import pytest

from catp.export.demo import samples
from catp.runtime import Pipeline, UsageError

SHORT, LONG = "what is red?", "Question: what is in the bottom right of this picture of many things? Answer:"


@pytest.fixture(scope="module")
def instructed(instructblip_bundle: Path) -> Pipeline:
    return Pipeline.load(instructblip_bundle)


def test_pads_change_no_vote_and_words_do(instructed: Pipeline) -> None:
    pixels = instructed.preprocess([samples()[0].image] * 2)
    alone = instructed.votes(instructed.encode(pixels[:1], [SHORT]))
    beside = instructed.votes(instructed.encode(pixels, [SHORT, LONG]))
    assert (instructed.instruct([SHORT, LONG])["instruction_mask"].sum(1) != 0).all()
    np.testing.assert_allclose(beside.scores[0], alone.scores[0], rtol=1e-5)
    np.testing.assert_allclose(beside.embeds[0], alone.embeds[0], rtol=0, atol=1e-4 * np.abs(alone.embeds).max())
    assert np.abs(beside.scores[1] - beside.scores[0]).max() > 1e-3 * np.abs(beside.scores).max()


def test_one_image_with_two_questions_is_voted_on_twice(instructed: Pipeline) -> None:
    image = samples()[0].image
    together = instructed.ask(image, [SHORT, LONG, SHORT], max_new_tokens=3)
    alone = [instructed.generate([image], [prompt], max_new_tokens=3)[0] for prompt in (SHORT, LONG, SHORT)]
    assert [(a.kept_indices, a.token_ids) for a in together] == [(a.kept_indices, a.token_ids) for a in alone]


def test_images_without_prompts_are_refused(instructed: Pipeline) -> None:
    with pytest.raises(UsageError, match="1 images and 0 prompts: the Q-Former of this bundle reads the prompt too"):
        instructed.encode(instructed.preprocess([samples()[0].image]))


def test_a_prompt_longer_than_the_q_former_takes_is_refused(instructed: Pipeline) -> None:
    with pytest.raises(UsageError, match="tokens for the Q-Former, which takes 512; give a shorter one"):
        instructed.instruct(["red " * 600])
    each = (len(instructed.instruct(["? ?"])["instruction_ids"][0]) - 2) // 2
    assert instructed.instruct(["? " * (510 // each)])["instruction_ids"].shape == (1, 512)
    with pytest.raises(UsageError, match="513 tokens for the Q-Former, which takes 512"):
        instructed.instruct(["? " * (511 // each)])
