import numpy as np
import pytest
from PIL import Image

from catp.calibration.data import open_data
from catp.export.demo import scenes


def test_the_demo_is_a_thousand_held_out_scenes() -> None:
    assert len(open_data("demo")) == 1000


@pytest.mark.parametrize(("limit", "seed"), [(30, 2024), (12, 5)])
def test_a_subset_is_the_scenes_that_its_seed_draws(limit: int, seed: int) -> None:
    questions = list(open_data("demo").subset(limit, None, seed))
    examples = list(scenes.examples(limit, seed))
    assert len(questions) == limit
    for question, example in zip(questions, examples, strict=True):
        assert question.prompt == example.question.prompt
        assert question.answers == (example.question.answer,)
        assert isinstance(question.image, Image.Image)
        assert np.array_equal(np.asarray(question.image), np.asarray(example.image))
    assert len({q.id for q in questions}) == len({q.image_key for q in questions}) == limit


def test_the_first_of_the_whole_are_those_of_its_subset() -> None:
    demo = open_data("demo")
    assert next(iter(demo)).question == next(iter(demo.subset(5, None, 2024))).question
    assert [q.id for q in demo.subset(3, None, 1)] == [q.id for q in demo.subset(3, None, 1)]


def test_there_is_no_end_to_scenes() -> None:
    demo = open_data("demo")
    assert len(demo.subset(5000, None, 1)) == 5000
    assert len(demo.subset(None, 0.1, 1)) == 100
    assert len(demo.subset(None, None, 1)) == 1000
