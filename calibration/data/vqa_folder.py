"""VQAv2 as its zip files unpack: questions, annotations, COCO pictures, found without renaming anything.

    v2_OpenEnded_mscoco_val2014_questions.json
    v2_mscoco_val2014_annotations.json
    val2014/COCO_val2014_000000000042.jpg

The three may lie up to DEPTH folders deep, and other splits beside them. The layout is that of visualqa.org/download.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from catp.calibration.data.dataset import QuestionList, VqaExample
from catp.calibration.data.errors import DataError, first_problem
from catp.runtime.errors import UsageError
from catp.runtime.files import is_dir

DEPTH = 3
QUESTIONS = re.compile(r"(v2_)?OpenEnded_mscoco_([a-z]+(?:-[a-z]+)?\d{4})_questions\.json")
ANNOTATIONS = re.compile(r"(v2_)?mscoco_([a-z]+(?:-[a-z]+)?\d{4})_annotations\.json")
PICTURE = re.compile(r"COCO_([a-z]+\d{4})_\d{12}\.jpg")

T = TypeVar("T")


@dataclass(frozen=True, order=True)
class _Split:
    """VQA version and split of a file, as in its name: `v2_` (or nothing for the first VQA) and `test-dev2015`."""

    version: str
    name: str

    @property
    def pictures(self) -> str:
        """The split of COCO that the pictures are from: test-dev2015 asks about test2015."""
        return re.sub(r"-[a-z]+", "", self.name)

    def __str__(self) -> str:
        return self.version + self.name


@dataclass
class _Found:
    questions: dict[_Split, list[Path]] = field(default_factory=dict)
    annotations: dict[_Split, list[Path]] = field(default_factory=dict)
    pictures: dict[str, list[Path]] = field(default_factory=dict)  # COCO split -> folders


# What is read of the files; what else is in them is skipped while parsing.
@dataclass(slots=True)
class _Question:
    question_id: int
    image_id: int
    question: str


@dataclass(slots=True)
class _QuestionsFile:
    questions: list[_Question]


@dataclass(slots=True)
class _Answer:
    answer: str


@dataclass(slots=True)
class _Annotation:
    question_id: int
    image_id: int
    answer_type: str
    answers: list[_Answer]


@dataclass(slots=True)
class _AnnotationsFile:
    annotations: list[_Annotation]


def open_vqa(path: Path) -> QuestionList:
    """The questions of one split. Pictures are not opened: a missing one shows when it is loaded.

    Args:
        path: the folder, or a questions file where the folder holds several splits.

    Raises:
        UsageError: something is missing, or there is more than one of it.
        DataError: a JSON file is broken, or the two contradict each other.
    """
    if is_dir(path):
        found = _search(path)
        split = _choose_split(path, found)
    else:
        path, found, split = _search_around(path)
    questions = _only(path, found.questions[split], f"questions file of {split}")
    annotations = _only(
        path,
        found.annotations.get(split, []),
        f"{split.version}mscoco_{split.name}_annotations.json",
        "accuracy needs its answers, which are published for train and val",
    )
    pictures = _only(
        path,
        found.pictures.get(split.pictures, []),
        f"folder with pictures such as COCO_{split.pictures}_000000000042.jpg",
        f"unpack {split.pictures}.zip there",
    )
    name = f"VQA {'v2' if split.version else 'v1'} {split.name}"
    return QuestionList(name, _join(questions, annotations, pictures / f"COCO_{split.pictures}_"))


def _search(root: Path) -> _Found:
    found = _Found()
    for folder, below, files in os.walk(root, followlinks=True):
        here = Path(folder)
        if len(here.relative_to(root).parts) == DEPTH:
            below.clear()
        below[:] = sorted(name for name in below if name != "__MACOSX" and not name.startswith("."))
        for pattern, kind in ((QUESTIONS, found.questions), (ANNOTATIONS, found.annotations)):
            for match in filter(None, map(pattern.fullmatch, files)):
                kind.setdefault(_Split(match[1] or "", match[2]), []).append(here / match[0])
        for split in {match[1] for match in map(PICTURE.fullmatch, files) if match}:
            found.pictures.setdefault(split, []).append(here)
    return found


def _search_around(path: Path) -> tuple[Path, _Found, _Split]:
    """The files of a questions file, which may lie beside the pictures' folder, or in a folder of its own beside it."""
    match = QUESTIONS.fullmatch(path.name)
    if not match or not path.is_file():
        raise UsageError(
            f"data {path}: not a VQA questions file; accepted: v2_OpenEnded_mscoco_<split>_questions.json, "
            "or the folder it lies in"
        )
    split = _Split(match[1] or "", match[2])
    for root in (path.absolute().parent, path.absolute().parent.parent):
        found = _search(root)
        if split in found.annotations and split.pictures in found.pictures:
            break
    found.questions[split] = [path]
    return root, found, split


def _choose_split(folder: Path, found: _Found) -> _Split:
    if not found.questions:
        raise UsageError(
            f"data {folder}: no v2_OpenEnded_mscoco_<split>_questions.json in it; "
            "give the folder that VQAv2's zip files were unpacked in"
        )
    # Test splits come without answers, so they are no candidates where there is another.
    splits = sorted(set(found.questions) & set(found.annotations)) or sorted(found.questions)
    if len(splits) > 1:
        example = found.questions[splits[-1]][0]
        raise UsageError(
            f"data {folder}: it has {', '.join(map(str, splits))}; give the questions file of one, such as {example}"
        )
    return splits[0]


def _only(folder: Path, paths: list[Path], what: str, advice: str = "") -> Path:
    if not paths:
        raise UsageError(f"data {folder}: no {what} in it, up to {DEPTH} folders deep; {advice}")
    if len(paths) > 1:
        raise UsageError(f"data {folder}: more than one {what}: {paths[0]}, {paths[1]}; move one away")
    return paths[0]


def _join(questions_file: Path, annotations_file: Path, pictures: Path) -> list[VqaExample]:
    """Every question with its answers; `pictures` is what the pictures' paths begin with."""
    annotations: dict[int, _Annotation] = {}
    for annotation in _read(annotations_file, _AnnotationsFile).annotations:
        if annotation.question_id in annotations:
            raise DataError(f"{annotations_file}: question_id {annotation.question_id} comes twice; unpack it again")
        annotations[annotation.question_id] = annotation
    questions: dict[int, VqaExample] = {}
    for asked in _read(questions_file, _QuestionsFile).questions:
        id = asked.question_id
        if id in questions:
            raise DataError(f"{questions_file}: question_id {id} comes twice; unpack it again")
        annotated = annotations.get(id)
        if annotated is None:
            raise DataError(f"{annotations_file}: no answers for question_id {id} of {questions_file.name}")
        if annotated.image_id != asked.image_id:
            raise DataError(
                f"{annotations_file}: question_id {id} is about image {annotated.image_id}, "
                f"in {questions_file.name} about {asked.image_id}"
            )
        answers = tuple(entry.answer for entry in annotated.answers)
        if not any(answer.strip() for answer in answers):
            raise DataError(f"{annotations_file}: the answers to question_id {id} are empty")
        image = Path(f"{pictures}{asked.image_id:012d}.jpg")
        questions[id] = VqaExample(
            str(id), image, asked.question, answers, annotated.answer_type, image_key=str(asked.image_id)
        )
    if not questions:
        raise DataError(f"{questions_file}: no questions in it; unpack it again")
    return list(questions.values())


def _read(path: Path, kind: type[T]) -> T:
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes())
    except OSError as error:
        raise UsageError(f"data {path}: can't be opened ({error.strerror})") from None
    except ValidationError as error:
        raise DataError(f"{path}: {first_problem(error)}; unpack it again") from None
