"""A miniature VQAv2 in the real file layout, with the demo's pictures, and its accuracy worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from catp.export.demo import IMAGES


@dataclass(frozen=True)
class Case:
    """A question, what ten people answered, what the demo model answers with all tokens, and how right that is."""

    question_id: int
    image_id: int
    question: str
    answer_type: str
    answers: tuple[str, ...]
    prediction: str
    accuracy: float


PICTURES = {42: "scene-a.png", 74: "scene-b.png", 133: "scene-c.png", 136: "scene-d.png"}
CORRUPT, MISSING = 133, 136

# Questions about one image are apart here, as they may be in a file.
CASES = (
    # Four say "black diamond" once case, article and period are gone.
    Case(
        42000, 42, "what is in the bottom right?", "other",
        ("black diamond", "a black diamond", "The Black Diamond", "black diamond.", *["diamond"] * 5, "rhombus"),
        "a black diamond", 1.0,
    ),
    # Two: a hyphen within a word becomes a space, next to a space it goes. "bottomleft" stays another word.
    Case(
        74000, 74, "where is the green circle?", "other",
        ("bottom-left", "bottom - left", "bottomleft", *["left"] * 5, "lower left", "corner"),
        "bottom left", 0.6,
    ),
    # Three.
    Case(
        42001, 42, "what shape is the blue one?", "other",
        ("circle", "Circle", "circle?", *["round"] * 4, "ball", "dot", "o"),
        "circle", 0.9,
    ),
    # All ten are the same, so that nothing is normalised: "yellow" is not "Yellow".
    Case(74001, 74, "what color is the square?", "other", ("Yellow",) * 10, "yellow", 0.0),
    # One; "none" means 0.
    Case(
        42002, 42, "what is in the top center?", "other",
        ("nothing", *["none"] * 5, "no", "0", "white", "empty"),
        "nothing", 0.3,
    ),
    Case(74002, 74, "what shape is in the center?", "other", ("star",) * 10, "star", 1.0),
    # The demo model can neither agree nor count: whatever it says is none of these.
    Case(74003, 74, "is there a star?", "yes/no", (*["yes"] * 9, "no"), "center", 0.0),
    Case(42003, 42, "how many shapes are there?", "number", (*["4"] * 6, *["four"] * 3, "2"), "cross", 0.0),
    Case(133000, CORRUPT, "what color is the circle?", "other", ("red",) * 10, "", 0.0),
    Case(136000, MISSING, "what shape is the blue one?", "other", ("cross",) * 10, "", 0.0),
)  # fmt: skip

READABLE = tuple(case for case in CASES if case.image_id not in (CORRUPT, MISSING))
MEAN_ACCURACY = 0.475
"""Of READABLE: (1 + 0.6 + 0.9 + 0 + 0.3 + 1 + 0 + 0) / 8."""
ACCURACY_BY_TYPE = {"other": 3.8 / 6, "yes/no": 0.0, "number": 0.0}
"""Of READABLE."""


def write_vqa_folder(
    root: Path, cases: Sequence[Case] = CASES, split: str = "val2014", pictures: str = "val2014", nested: bool = False
) -> Path:
    """Write questions, annotations and pictures of a split under `root`, which is returned.

    Picture CORRUPT is cut off in the middle, picture MISSING is not written.

    Args:
        pictures: the COCO split of the pictures, `test2015` for the questions of `test-dev2015`.
        nested: every zip file unpacked in a folder of its own name.
    """
    season = split.removesuffix(split[-4:]).capitalize()
    common = {"info": {"version": "2.0"}, "data_type": "mscoco", "data_subtype": split, "license": {"name": "none"}}
    questions = {
        **common,
        "task_type": "Open-Ended",
        "questions": [{"image_id": c.image_id, "question": c.question, "question_id": c.question_id} for c in cases],
    }
    annotations = {**common, "annotations": [_annotation(case) for case in reversed(cases)]}
    for folder, name, content in (
        (f"v2_Questions_{season}_mscoco", f"v2_OpenEnded_mscoco_{split}_questions.json", questions),
        (f"v2_Annotations_{season}_mscoco", f"v2_mscoco_{split}_annotations.json", annotations),
    ):
        path = (root / folder if nested else root) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    folder = root / pictures / pictures if nested else root / pictures
    folder.mkdir(parents=True, exist_ok=True)
    for image_id in {case.image_id for case in cases} - {MISSING}:
        path = folder / f"COCO_{pictures}_{image_id:012d}.jpg"
        with Image.open(IMAGES / PICTURES[image_id]) as picture:
            picture.convert("RGB").save(path, quality=95)
        if image_id == CORRUPT:
            path.write_bytes(path.read_bytes()[:1500])
    return root


def _annotation(case: Case) -> dict[str, object]:
    return {
        "question_type": "what",
        "multiple_choice_answer": max(set(case.answers), key=case.answers.count),
        "answers": [
            {"answer": answer, "answer_confidence": "yes", "answer_id": i} for i, answer in enumerate(case.answers, 1)
        ],
        "image_id": case.image_id,
        "answer_type": case.answer_type,
        "question_id": case.question_id,
    }
