from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from catp.calibration.accuracy.answering import Answerer, in_batches
from catp.calibration.accuracy.asking import USUAL, Asking
from catp.calibration.accuracy.predictions import Prediction
from catp.calibration.accuracy.settings import Grid
from catp.calibration.data import VqaExample, open_data
from catp.export.demo import scenes
from catp.runtime import Pipeline
from catp.runtime.bundle.generation_settings import GREEDY
from catp.runtime.pruning import num_kept_by_mass

DEMO = list(open_data("demo").subset(20, None, seed=5))


def answered(
    pipeline: Pipeline,
    questions: Sequence[VqaExample],
    grid: Grid,
    batch_size: int = 8,
    seed: int = 0,
    asking: Asking = USUAL,
) -> list[Prediction]:
    answerer = Answerer(pipeline, grid.settings(), "exact match", seed, batch_size, asking)
    return [found for batch in in_batches(questions, batch_size) for found in answerer.answer(batch)]


def several_per_image(images: int, questions: int) -> list[VqaExample]:
    """Each image in an object of its own for every question, as if read again from disk."""
    examples = scenes.examples(images * questions, seed=9, per_image=questions)
    return [
        VqaExample(str(i), e.image.copy(), e.question.prompt[10:-8], (e.question.answer,), "other", str(i // questions))
        for i, e in enumerate(examples)
    ]


def test_a_batch_ends_with_the_image_that_fills_it() -> None:
    keys = [1, 1, 1, 2, 2, 3, 4, 4, 4, 4, 4, 4, 5]
    questions = [replace(DEMO[0], id=str(i), image_key=str(key)) for i, key in enumerate(keys)]
    batches = [[int(question.image_key) for question in batch] for batch in in_batches(questions, 4)]
    assert batches == [[1, 1, 1, 2, 2], [3, 4, 4, 4, 4, 4, 4], [5]]
    assert list(in_batches([], 4)) == []


def test_scores_are_those_of_answering_one_by_one(pipeline: Pipeline) -> None:
    grid = Grid(("catp",), (0.0, 0.9), ("original", "compact"))
    predictions = answered(pipeline, DEMO, grid)
    assert [prediction.id for prediction in predictions] == [question.id for question in DEMO]
    for column, setting in enumerate(grid.settings()):
        answers = [
            pipeline.generate([q.image], [q.prompt], ratio=setting.ratio, positions=setting.positions)[0] for q in DEMO
        ]
        assert [p.answers[column] for p in predictions] == [answer.answer for answer in answers]
        assert [p.num_kept[column] for p in predictions] == [answer.num_kept for answer in answers]
        right = [float(answer.answer == question.answers[0]) for answer, question in zip(answers, DEMO)]
        assert [p.accuracy[column] for p in predictions] == right
    accuracy = np.mean([p.accuracy for p in predictions], axis=0)
    assert accuracy[0] > accuracy[2]  # three tokens can't describe a scene


def test_a_share_of_the_votes_is_that_of_the_pipeline(pipeline: Pipeline) -> None:
    grid = Grid(("catp",), (), ("compact",), (0.5, 0.9))
    predictions = answered(pipeline, DEMO[:8], grid)
    for column, mass in enumerate(grid.keep_masses):
        answers = pipeline.generate(
            [q.image for q in DEMO[:8]], [q.prompt for q in DEMO[:8]], keep_mass=mass, positions="compact"
        )
        assert [(p.answers[column], p.num_kept[column]) for p in predictions] == [
            (answer.answer, answer.num_kept) for answer in answers
        ]
    assert len({p.num_kept for p in predictions}) > 1
    votes = pipeline.votes(pipeline.encode(pipeline.preprocess([q.image for q in DEMO[:8]])))
    assert [p.num_kept[0] for p in predictions] == num_kept_by_mass(votes.scores, 0.5).tolist()


def test_random_does_not_depend_on_batches(pipeline: Pipeline) -> None:
    grid = Grid(("random",), (0.75,), ("original",))
    one, eight = (answered(pipeline, DEMO, grid, size, seed=7) for size in (1, 8))
    assert one == eight
    assert one != answered(pipeline, DEMO, grid, seed=8)


class Counted:
    """Counts the images that the pipeline encodes and the rows that its language model answers."""

    def __init__(self, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
        self.images: list[int] = []
        self.rows: list[int] = []
        encode, decode = pipeline.encode, pipeline.decode

        def counted_encode(pixel_values: np.ndarray) -> Any:
            self.images.append(len(pixel_values))
            return encode(pixel_values)

        def counted_decode(pruned: Any, prompts: Any, *rest: Any) -> Any:
            self.rows.append(len(prompts))
            return decode(pruned, prompts, *rest)

        monkeypatch.setattr(pipeline, "encode", counted_encode)
        monkeypatch.setattr(pipeline, "decode", counted_decode)


def test_an_image_is_encoded_once_for_all_its_questions(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    questions = several_per_image(images=4, questions=3)
    grid = Grid(("catp", "random"), (0.5,), ("original",))
    one_by_one = [prediction for q in questions for prediction in answered(pipeline, [q], grid)]
    counted = Counted(pipeline, monkeypatch)
    assert answered(pipeline, questions, grid, batch_size=4) == one_by_one
    assert counted.images == [2, 2]
    assert max(counted.rows) == 4 and sum(counted.rows) == 12 * 2


def test_what_settings_share_is_answered_once(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(pipeline, monkeypatch)
    # 0.01 keeps all as 0 does; 0.9 and 0.91 keep three.
    grid = Grid(("catp", "random"), (0.0, 0.01, 0.9, 0.91), ("original", "compact"))
    (prediction,) = answered(pipeline, DEMO[:1], grid)
    assert len(prediction.answers) == 16
    assert sum(counted.rows) == 1 + 2 * 2  # all tokens; three tokens by two methods in two position modes


def test_what_cannot_be_asked_says_why(pipeline: Pipeline, tmp_path: Path) -> None:
    missing = replace(DEMO[1], image=tmp_path / "none.png")
    long = replace(DEMO[2], question="what is it? " * 100)
    grid = Grid(("catp",), (0.5,), ("original",))
    alone = answered(pipeline, [DEMO[0]], grid)
    first, second, third, fourth = answered(pipeline, [DEMO[0], missing, long, DEMO[3]], grid)
    assert [first] == alone and fourth.error is None
    assert second.error == f"image {tmp_path / 'none.png'}: no such file" and second.answers == ()
    assert third.error is not None and third.error.endswith("tokens: this model takes 224")
    (nothing,) = answered(pipeline, [missing], grid)
    assert nothing == second


BEAMS = Asking("{question} Short answer:", GREEDY.override(num_beams=3, length_penalty=-1.0, min_new_tokens=2), 5)


@pytest.mark.parametrize("bundle", ["demo_bundle", "t5_bundle", "instructblip_bundle", "vqa_bundle"])
def test_settings_and_template_give_the_pipelines_answers(bundle: str, request: pytest.FixtureRequest) -> None:
    """Every kind of language model; InstructBLIP votes anew for each of several questions about one picture."""
    pipeline = Pipeline.load(request.getfixturevalue(bundle))
    votes = pipeline.manifest.vote
    grid = Grid((votes.method if votes else "none",), (0.0, 0.5) if votes else (0.0,), ("original",))
    questions = several_per_image(images=3, questions=3)
    found = answered(pipeline, questions, grid, batch_size=4, asking=BEAMS)
    for column, setting in enumerate(grid.settings()):
        for prediction, question in zip(found, questions):
            (answer,) = pipeline.generate(
                [question.image], [f"{question.question} Short answer:"], setting.ratio, max_new_tokens=5,
                settings=BEAMS.generation,
            )  # fmt: skip
            assert prediction.error is None
            assert (prediction.answers[column], prediction.num_kept[column]) == (answer.answer, answer.num_kept)
    assert [p.answers for p in found] != [p.answers for p in answered(pipeline, questions, grid)]


def test_votes_that_read_the_question_are_those_of_answering_one_by_one(instructblip_bundle: Path) -> None:
    pipeline = Pipeline.load(instructblip_bundle)
    grid = Grid(("self-attention", "random"), (0.0, 0.6), ("compact",), (0.5,))
    questions = several_per_image(images=2, questions=4)
    found = answered(pipeline, questions, grid, batch_size=3)
    own = [setting for setting in grid.settings() if setting.method != "random"]
    places = [column for column, setting in enumerate(grid.settings()) if setting in own]
    for prediction, question in zip(found, questions):
        for column, setting in zip(places, own):
            (answer,) = pipeline.generate(
                [question.image], [question.prompt], setting.ratio, "compact", keep_mass=setting.keep_mass
            )
            assert (prediction.answers[column], prediction.num_kept[column]) == (answer.answer, answer.num_kept)
    assert len({prediction.answers for prediction in found}) > 1


def test_drawn_answers_do_not_depend_on_batches(pipeline: Pipeline) -> None:
    asking = Asking(generation=GREEDY.override(do_sample=True, temperature=3.0))
    grid = Grid(("catp", "random"), (0.0, 0.75), ("original",))
    one, eight = (answered(pipeline, DEMO, grid, size, 3, asking) for size in (1, 8))
    assert one == eight == answered(pipeline, DEMO[:7], grid, 8, 3, asking) + one[7:]
    assert one != answered(pipeline, DEMO, grid, 8, 4, asking)
    assert one != answered(pipeline, DEMO, grid, 8, 3)


def test_beams_count_as_rows(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(pipeline, monkeypatch)
    answered(pipeline, DEMO, Grid(("catp",), (0.5,), ("original",)), 8, asking=BEAMS)
    assert set(counted.rows) == {2} and sum(counted.rows) == len(DEMO)
