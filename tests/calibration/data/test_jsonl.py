import json
from pathlib import Path

import pytest

from catp.calibration.data import DataError, open_data
from catp.runtime import UsageError

GOOD = {"image": "a.jpg", "question": "what is it?", "answer": "cup"}


def write(path: Path, *lines: object) -> Path:
    texts = (line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines)
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


def test_questions_as_written(tmp_path: Path) -> None:
    path = write(
        tmp_path / "my.jsonl",
        {**GOOD, "image": "pictures/1.jpg"},
        "",
        {**GOOD, "image": "/else/2.png", "id": 7, "source": "ignored"},
        {"image": "./pictures/../pictures/1.jpg", "question": "où?", "answers": ["là", "", "ici"],
         "answer_type": "place", "id": "q1"},
    )  # fmt: skip
    data = open_data(str(path))
    assert data.name == "my.jsonl" and len(data) == 3
    first, second, third = data
    assert (first.id, second.id, third.id) == ("line 1", "q1", "7")  # the two about one image came together
    assert first.image == tmp_path / "pictures/1.jpg" and third.image == Path("/else/2.png")
    assert first.image_key == second.image_key == "pictures/1.jpg" and third.image_key == "/else/2.png"
    assert (first.answers, first.answer_type) == (("cup",), "other")
    assert (second.question, second.answers, second.answer_type) == ("où?", ("là", "", "ici"), "place")


def test_a_byte_order_mark_and_windows_line_ends_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "my.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n\r\n")
    assert len(open_data(str(path))) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"image": "a.jpg", "question": ', "line 2: Invalid JSON: EOF while parsing a value at column 30"),
        ("[1]", "line 2: Input should be an object"),
        ({**GOOD, "image": None}, "line 2: image: Input should be a valid string"),
        ({**GOOD, "question": ""}, "line 2: question: "),
        ({"image": "a.jpg", "answer": "cup"}, "line 2: question: Field required"),
        ({"image": "a.jpg", "question": "what?"}, 'line 2: give either "answers", a list, or "answer"'),
        ({**GOOD, "answers": ["cup"]}, "line 2: give either"),
        ({**GOOD, "answer": " "}, "line 2: its answers are empty"),
        ({**GOOD, "answer": 3}, "line 2: answer: Input should be a valid string"),
        ({"image": "a.jpg", "question": "what?", "answers": []}, "line 2: its answers are empty"),
        ({"image": "a.jpg", "question": "what?", "answers": "cup"}, "line 2: answers: Input should be a valid array"),
        ({**GOOD, "id": "q"}, "line 2: id 'q' is also that of line 1"),
        ('{"question": "\\ud800"}', "line 2: Invalid JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: object, message: str) -> None:
    path = write(tmp_path / "bad.jsonl", {**GOOD, "id": "q"}, line)
    with pytest.raises(DataError) as caught:
        open_data(str(path))
    assert str(caught.value).startswith(f"{path}, {message}") and "\n" not in str(caught.value)
    assert caught.value.exit_code == 1


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"image": "a.jpg", "question": "caf\xe9", "answer": "x"}\n')
    with pytest.raises(DataError, match=r"line 1: .*unicode"):
        open_data(str(path))


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no questions"):
        open_data(str(write(tmp_path / "empty.jsonl", "")))


@pytest.mark.parametrize("name", ["missing.jsonl", "x" * 300 + ".jsonl"])
def test_a_file_that_is_not_there_is_the_callers_mistake(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="can't be opened"):
        open_data(str(tmp_path / name))
