import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from vqa_folder import ACCURACY_BY_TYPE, CASES, CORRUPT, MEAN_ACCURACY, MISSING, READABLE, write_vqa_folder

from catp.calibration.data import DataError, DataSet, open_data
from catp.calibration.data.vqa_accuracy import vqa_accuracy
from catp.runtime import ImageError, UsageError
from catp.runtime.inputs.images import load_image

QUESTIONS, ANNOTATIONS = "v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"


def by_id(data: DataSet) -> dict[int, Any]:
    return {int(question.id): question for question in data}


@pytest.mark.parametrize("nested", [False, True])
def test_questions_answers_and_pictures_belong_together(tmp_path: Path, nested: bool) -> None:
    data = open_data(str(write_vqa_folder(tmp_path, nested=nested)))
    assert data.name == "VQA v2 val2014" and len(data) == len(CASES)
    questions = by_id(data)
    for case in CASES:
        question = questions[case.question_id]
        assert (question.question, question.answers) == (case.question, case.answers)
        assert (question.answer_type, question.image_key) == (case.answer_type, str(case.image_id))
        assert question.image.name == f"COCO_val2014_{case.image_id:012d}.jpg"
    for case in READABLE:
        assert load_image(questions[case.question_id].image).size == (192, 192)


def test_questions_about_one_image_come_together(tmp_path: Path) -> None:
    keys = [question.image_key for question in open_data(str(write_vqa_folder(tmp_path)))]
    assert keys == ["42"] * 4 + ["74"] * 4 + ["133", "136"]


def test_a_broken_picture_shows_when_its_turn_comes(tmp_path: Path) -> None:
    questions = by_id(open_data(str(write_vqa_folder(tmp_path))))
    with pytest.raises(ImageError, match="broken or truncated"):
        load_image(questions[CORRUPT * 1000].image)
    with pytest.raises(ImageError, match="no such file"):
        load_image(questions[MISSING * 1000].image)


def test_the_accuracy_is_that_worked_out_by_hand(tmp_path: Path) -> None:
    questions = by_id(open_data(str(write_vqa_folder(tmp_path, READABLE))))
    scores = {c.question_id: vqa_accuracy(c.prediction, questions[c.question_id].answers) for c in READABLE}
    assert scores == pytest.approx({c.question_id: c.accuracy for c in READABLE})
    assert sum(scores.values()) / len(scores) == pytest.approx(MEAN_ACCURACY)
    for kind, expected in ACCURACY_BY_TYPE.items():
        of_kind = [score for id, score in scores.items() if questions[id].answer_type == kind]
        assert sum(of_kind) / len(of_kind) == pytest.approx(expected)


def test_several_splits_side_by_side(tmp_path: Path) -> None:
    write_vqa_folder(tmp_path)
    write_vqa_folder(tmp_path, READABLE[:2], "train2014", "train2014")
    with pytest.raises(UsageError, match="v2_train2014, v2_val2014; give the questions file of one") as caught:
        open_data(str(tmp_path))
    assert str(tmp_path / QUESTIONS) in str(caught.value)
    assert len(open_data(str(tmp_path / QUESTIONS))) == len(CASES)
    train = open_data(str(tmp_path / QUESTIONS.replace("val", "train")))
    assert len(train) == 2 and train.name == "VQA v2 train2014"
    assert all("COCO_train2014_" in str(question.image) for question in train)


def test_a_questions_file_in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_vqa_folder(tmp_path, nested=True)
    monkeypatch.chdir(tmp_path / "v2_Questions_Val_mscoco")
    assert len(open_data(QUESTIONS)) == len(CASES)


def test_test_dev_is_about_test_pictures(tmp_path: Path) -> None:
    write_vqa_folder(tmp_path, READABLE, "test-dev2015", "test2015")
    data = open_data(str(tmp_path))
    assert data.name == "VQA v2 test-dev2015"
    assert next(iter(data)).image == tmp_path / "test2015" / "COCO_test2015_000000000042.jpg"


def test_a_split_without_answers_gives_way_to_one_with(tmp_path: Path) -> None:
    write_vqa_folder(tmp_path)
    (tmp_path / QUESTIONS.replace("val2014", "test2015")).write_text("{}")
    assert open_data(str(tmp_path)).name == "VQA v2 val2014"


def test_what_other_programs_leave_about_is_not_looked_at(tmp_path: Path) -> None:
    write_vqa_folder(tmp_path)
    for name in ("__MACOSX/val2014/COCO_val2014_000000000042.jpg", ".trash/" + ANNOTATIONS, "._" + QUESTIONS):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert len(open_data(str(tmp_path))) == len(CASES)


def test_the_first_vqa_has_the_same_layout(tmp_path: Path) -> None:
    write_vqa_folder(tmp_path)
    for name in (QUESTIONS, ANNOTATIONS):
        (tmp_path / name).rename(tmp_path / name.removeprefix("v2_"))
    assert open_data(str(tmp_path)).name == "VQA v1 val2014"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / QUESTIONS).unlink(), "no v2_OpenEnded_mscoco_<split>_questions.json in it"),
        (lambda root: (root / ANNOTATIONS).unlink(), f"no {ANNOTATIONS} in it, .* published for train and val"),
        (lambda root: (root / "val2014").rename(root / ".val2014"), "no folder with pictures .* unpack val2014.zip"),
        (lambda root: write_vqa_folder(root / "copy", READABLE), "more than one questions file of v2_val2014"),
        (lambda root: (root / "val2014").rename(root / "pictures"), None),  # the pictures' own names tell
    ],
)
def test_what_is_missing_or_ambiguous_is_said(
    tmp_path: Path, change: Callable[[Path], object], message: str | None
) -> None:
    change(write_vqa_folder(tmp_path))
    if message is None:
        assert len(open_data(str(tmp_path))) == len(CASES)
        return
    with pytest.raises(UsageError, match=message) as caught:
        open_data(str(tmp_path))
    assert str(caught.value).startswith(f"data {tmp_path}: ") and "\n" not in str(caught.value)


def first(content: dict[str, Any]) -> dict[str, Any]:
    (entries,) = (value for value in content.values() if isinstance(value, list))
    return entries[0]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (QUESTIONS, lambda c: c["questions"].append(c["questions"][0]), "question_id 42000 comes twice"),
        (ANNOTATIONS, lambda c: c["annotations"].append(c["annotations"][0]), "question_id 136000 comes twice"),
        (QUESTIONS, lambda c: first(c).update(question_id=5), "no answers for question_id 5 of v2_OpenEnded"),
        (QUESTIONS, lambda c: first(c).update(image_id=5), "question_id 42000 is about image 42, .* about 5"),
        (QUESTIONS, lambda c: first(c).pop("question"), "questions.0.question: Field required"),
        (QUESTIONS, lambda c: c["questions"].clear(), "no questions"),
        (QUESTIONS, lambda c: c.pop("questions"), "questions: Field required"),
        (ANNOTATIONS, lambda c: first(c).update(answers=[]), "answers to question_id 136000 are empty"),
        (ANNOTATIONS, lambda c: first(c).update(answers=[{"answer": ""}] * 10), "question_id 136000 are empty"),
        (ANNOTATIONS, lambda c: first(c)["answers"][3].update(answer=4), "annotations.0.answers.3.answer: "),
    ],
)
def test_a_broken_file_is_named(
    tmp_path: Path, name: str, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    path = write_vqa_folder(tmp_path) / name
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message) as caught:
        open_data(str(tmp_path))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_cut_off_is_named(tmp_path: Path) -> None:
    path = write_vqa_folder(tmp_path) / ANNOTATIONS
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=f"{ANNOTATIONS}: Invalid JSON: EOF"):
        open_data(str(tmp_path))


@pytest.mark.parametrize("name", ["nothing", "demo2", "x" * 300, "pictures.zip"])
def test_an_unknown_data_set_names_what_is_accepted(name: str) -> None:
    with pytest.raises(UsageError, match=r"no such data set; accepted: demo, .*VQAv2.*\.jsonl"):
        open_data(name)


@pytest.mark.parametrize("name", [ANNOTATIONS, "missing.json", QUESTIONS.replace("val", "train")])
def test_a_json_file_that_is_no_questions_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="not a VQA questions file"):
        open_data(str(write_vqa_folder(tmp_path) / name))
