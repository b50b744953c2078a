"""NLVR2's own files: what is read of them, where their images lie, and what is wrong with them in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from catp.calibration.data import DataError, open_data
from catp.calibration.data.nlvr2 import read_sentence
from catp.runtime import UsageError

LINES: list[dict[str, Any]] = [
    {"sentence": "The left image has a dog.", "label": "True", "identifier": "test1-0-1-0", "writer": "x"},
    {"sentence": "Both images (really!) show 2 dogs; none\tsleeps:", "label": "False", "identifier": "test1-0-1-1"},
    {"sentence": "There's a cat", "label": "False", "identifier": "test1-3-0-0", "synset": "cat"},
]

Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def run(lines: list[Any], images: str = ".", name: str = "test1.json") -> Path:
        folder = tmp_path / "data" / images
        folder.mkdir(parents=True, exist_ok=True)
        for pair in ("test1-0-1", "test1-3-0"):
            for place in (0, 1):
                Image.new("RGB", (8, 6), (40 * place, 0, 0)).save(folder / f"{pair}-img{place}.png")
        text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
        (tmp_path / "data" / name).write_text(text + "\n")
        return tmp_path / "data" / name

    return run


@pytest.mark.parametrize("images", [".", "test1", "images", "images/test1", "../images/test1"])
def test_statements_with_both_images(save: Save, images: str) -> None:
    data = open_data(str(save(LINES, images)))
    found = list(data)
    assert len(data) == 3 and data.metric == "exact match" and data.name == "test1.json"
    assert [(q.id, q.answers, q.answer_type) for q in found] == [
        ("test1-0-1-0", ("true",), "true"),
        ("test1-0-1-1", ("false",), "false"),
        ("test1-3-0-0", ("false",), "false"),
    ]
    assert [[path.name for path in q.images] for q in found] == [
        ["test1-0-1-img0.png", "test1-0-1-img1.png"],
        ["test1-0-1-img0.png", "test1-0-1-img1.png"],
        ["test1-3-0-img0.png", "test1-3-0-img1.png"],
    ]
    assert all(path.is_file() for q in found for path in q.images)
    assert found[0].image_key == found[1].image_key == "test1-0-1-img0.png" != found[2].image_key
    assert found[1].question == "both images really show 2 dogs none sleeps"
    assert found[2].question == "there's a cat"


def test_images_of_the_training_file_lie_in_numbered_folders(save: Save) -> None:
    lines = [{**LINES[0], "directory": 17}]
    found = list(open_data(str(save(lines, "images/train/17", "train.json"))))
    assert found[0].image.parent.name == "17" and found[0].image.is_file()  # type: ignore[union-attr]


def test_a_part_stays_a_set_of_pairs(save: Save) -> None:
    data = open_data(str(save(LINES)))
    part = data.subset(2, None, 0)
    assert type(part) is type(data) and len(part) == 2 and part.metric == "exact match"
    assert data.digest() != part.digest()


def test_sentences_are_cut_at_forty_words() -> None:
    assert read_sentence("Dog " * 60) == " ".join(["dog"] * 40)


@pytest.mark.parametrize(
    ("lines", "error", "says"),
    [
        ([*LINES[:2], {**LINES[2], "label": "maybe"}], DataError, "test1.json, line 3: label"),
        ([LINES[0], "{"], DataError, "test1.json, line 2"),
        ([LINES[0], LINES[0]], DataError, "line 2: identifier 'test1-0-1-0' is also that of line 1"),
        ([{**LINES[0], "identifier": "../secret-0"}], DataError, "line 1: identifier"),
        ([{**LINES[0], "identifier": "dev-9-9-0"}], UsageError, "dev-9-9-img0.png lies in none of"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(save: Save, lines: list[Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error) as caught:
        open_data(str(save(lines)))
    assert says in str(caught.value) and "\n" not in str(caught.value)
