"""Questions with settings of their own: answered together as they are alone."""

from __future__ import annotations

import pytest

from catp.export.demo import samples
from catp.runtime import Pipeline, UsageError
from catp.runtime.bundle.generation_settings import GREEDY
from catp.runtime.questions import Question, Wishes

BEAMS = GREEDY.override(num_beams=3)
WISHES = [
    Wishes(GREEDY, ratio=0.0),
    Wishes(GREEDY, ratio=0.75),
    Wishes(BEAMS, ratio=0.75),
    Wishes(GREEDY, keep_mass=0.6),
    Wishes(GREEDY, ratio=0.75, positions="compact"),
    Wishes(GREEDY, ratio=0.75, max_new_tokens=1),
]


def test_each_question_has_its_own_settings(pipeline: Pipeline) -> None:
    questions = [Question(s.image, s.prompt, wishes) for wishes in WISHES for s in samples()]
    together = pipeline.answer(questions)
    alone = [pipeline.answer([question])[0] for question in questions]
    assert [(a.token_ids, a.kept_indices) for a in together] == [(a.token_ids, a.kept_indices) for a in alone]
    kept = {wishes: {a.num_kept for a, q in zip(together, questions) if q.wishes == wishes} for wishes in WISHES}
    assert kept[WISHES[0]] == {32} and kept[WISHES[1]] == kept[WISHES[2]] == {8}
    assert all(len(a.token_ids) == 1 for a, q in zip(together, questions) if q.wishes.max_new_tokens == 1)


def test_they_are_what_generate_asks(pipeline: Pipeline) -> None:
    images, prompts = [s.image for s in samples()], [s.prompt for s in samples()]
    asked = pipeline.generate(images, prompts, 0.5, "compact", 6, num_beams=3)
    wishes = Wishes(pipeline.manifest.generation.override(num_beams=3), 0.5, None, "compact", 6)
    answers = pipeline.answer([Question(image, prompt, wishes) for image, prompt in zip(images, prompts)])
    assert [(a.token_ids, a.kept_indices) for a in answers] == [(a.token_ids, a.kept_indices) for a in asked]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (Wishes(GREEDY, ratio=0.5, keep_mass=0.5), "give one of them"),
        (Wishes(GREEDY, ratio=1.0), "0 <= ratio < 1"),
        (Wishes(GREEDY, positions="near"), "positions 'near': unknown"),  # type: ignore[arg-type]
        (Wishes(GREEDY, max_new_tokens=0), "max_new_tokens 0"),
    ],
)
def test_a_wish_that_can_not_be_met_is_named(pipeline: Pipeline, wrong: Wishes, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        pipeline.answer([Question(samples()[0].image, samples()[0].prompt, wrong)])
