"""Pictures with captions, or with texts of which nobody said what they belong to."""

from pathlib import Path

from PIL import Image

from catp.calibration.data.captions import Captions
from catp.calibration.data.matched import DEMO_TEXTS, CaptionList, DemoPictures, PictureList

PICTURES = tuple(Path(f"{name}.png") for name in "abc")


def test_each_caption_is_one_question_about_its_picture() -> None:
    data = CaptionList(Captions("c.json", PICTURES, ("one", "two", "three", "four"), (1, 0, 1, 2)))
    assert [(q.question, q.image_key) for q in data] == [
        ("one", "b.png"), ("three", "b.png"), ("two", "a.png"), ("four", "c.png"),
    ]  # fmt: skip
    assert data.metric == "recall at 1" and data.name == "c.json" and len({q.id for q in data}) == 4
    assert len(data.subset(2, None, 0)) == 2


def test_pictures_take_texts_in_turn_and_keep_all_of_them() -> None:
    data = PictureList("folder", PICTURES, ["x", "y"])
    assert [(q.image, q.question) for q in data] == [(PICTURES[0], "x"), (PICTURES[1], "y"), (PICTURES[2], "x")]
    part = data.subset(1, None, 0)
    assert isinstance(part, PictureList) and part.texts == ("x", "y") and len(part) == 1
    # Ranges are kept by this: another list of texts is another data set, even where the questions are the same.
    assert PictureList("f", PICTURES[:1], ["x", "y"]).digest() != PictureList("f", PICTURES[:1], ["x", "z"]).digest()


def test_the_demos_pictures_are_the_same_for_the_same_seed() -> None:
    first, again, other = (list(DemoPictures(50, seed)) for seed in (1, 1, 2))
    assert [q.id for q in first] == [q.id for q in again] != [q.id for q in other]
    assert isinstance(first[0].image, Image.Image) and isinstance(again[0].image, Image.Image)
    assert first[0].image.tobytes() == again[0].image.tobytes()
    assert len(DEMO_TEXTS) == len(set(DEMO_TEXTS)) == 48 and {q.question for q in first} == set(DEMO_TEXTS)
    assert DemoPictures(50, 1).digest() != DemoPictures(50, 2).digest()
    assert len(DemoPictures().subset(1500, None, 3)) == 1500
