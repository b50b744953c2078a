import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from catp.calibration.accuracy.predictions import Evaluation, Prediction, PredictionsFile
from catp.calibration.data import DataError, VqaExample
from catp.runtime import UsageError
from catp.runtime.bundle.generation_settings import GREEDY
from catp.runtime.errors import CatpError

EVALUATION = Evaluation(
    bundle="00", provider="cpu", engines=None, data="demo", metric="exact match", limit=None, fraction=None, seed=1,
    questions=6, digest="11", methods=("catp",), ratios=(0.0, 0.5), keep_masses=(), positions=("original",),
    prompt_template="Question: {question} Answer:",
)  # fmt: skip
QUESTIONS = [VqaExample(str(i), Path("a"), "what?", ("cup",), "other", "a") for i in range(6)]
BATCHES = [QUESTIONS[:2], QUESTIONS[2:4], QUESTIONS[4:]]


def predict(question: VqaExample) -> Prediction:
    return Prediction(
        id=question.id, image_key="a", answer_type="other", answers=("cup", "é\n"), num_kept=(32, 16), accuracy=(1, 0)
    )


def write(path: Path, batches: int) -> PredictionsFile:
    file = PredictionsFile(path, EVALUATION)
    done, left = file.resume(BATCHES)
    assert done == 0
    for batch, _ in zip(left, range(batches)):
        file.append(predict(question) for question in batch)
    return file


def test_what_is_written_is_read(tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", 3)
    assert list(file) == [predict(question) for question in QUESTIONS]
    header, *lines = (tmp_path / "p.jsonl").read_text().splitlines()
    assert json.loads(header)["evaluation"]["ratios"] == [0.0, 0.5]
    assert json.loads(lines[0])["answers"] == ["cup", "é\n"]
    done, left = PredictionsFile(tmp_path / "p.jsonl", EVALUATION).resume(BATCHES)
    assert (done, list(left)) == (6, [])


def test_a_run_goes_on_wherever_it_was_cut_off(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.jsonl", 3).path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    for size in range(0, len(whole) + 1, 7):
        path = tmp_path / "cut.jsonl"
        path.write_bytes(whole[:size])
        file = PredictionsFile(path, EVALUATION)
        done, left = file.resume(BATCHES)
        finished = sum(end <= size for end in ends) - 1  # lines after the header
        assert done == max(0, finished) // 2 * 2  # and of those the ones of whole batches
        for batch in left:
            file.append(predict(question) for question in batch)
        assert path.read_bytes() == whole


def test_other_batches_keep_what_is_whole(tmp_path: Path) -> None:
    write(tmp_path / "p.jsonl", 2)
    file = PredictionsFile(tmp_path / "p.jsonl", EVALUATION)
    done, left = file.resume([QUESTIONS[:3], QUESTIONS[3:]])
    assert done == 3 and [len(batch) for batch in left] == [3]
    assert len(list(file)) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ratios": (0.0, 0.25)}, "begun with ratios 0.0, 0.5, not 0.0, 0.25; name another"),
        ({"keep_masses": (0.5,)}, "keep masses none, not 0.5"),
        ({"limit": 5, "questions": 5, "digest": "22"}, "begun with limit none, not 5; name another"),
        ({"digest": "22"}, "other questions or answers"),
        ({"bundle": "22", "provider": "cuda"}, "another bundle; provider cpu, not cuda"),
        ({"generation": GREEDY.override(num_beams=5)}, "begun with generation greedy, not num_beams 5; name another"),
        ({"max_new_tokens": 10}, "begun with max new tokens none, not 10; name another"),
        (
            {"prompt_template": "{question}\n"},
            r'begun with prompt template "Question: {question} Answer:", not "{question}\n"; name another',
        ),
    ],
)
def test_another_evaluation_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    before = write(tmp_path / "p.jsonl", 1).path.read_bytes()
    with pytest.raises(UsageError) as caught:
        PredictionsFile(tmp_path / "p.jsonl", EVALUATION.model_copy(update=change))
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert (tmp_path / "p.jsonl").read_bytes() == before


@pytest.mark.parametrize("content", ["notes", "notes\n", '{"kind": "else"}\n', "\n"])
def test_a_file_of_something_else_is_left_alone(tmp_path: Path, content: str) -> None:
    (tmp_path / "notes").write_text(content)
    with pytest.raises(UsageError, match="catp-eval wrote"):
        PredictionsFile(tmp_path / "notes", EVALUATION)
    assert (tmp_path / "notes").read_text() == content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda line: {**line, "id": "7"}, "line 3: question '7' where the data has '1'"),
        (lambda line: {**line, "answers": ["cup"]}, "line 3: not 2 answers"),
        (lambda line: {**line, "error": "x"}, "line 3: not 0 answers"),
        (lambda line: {"id": "1"}, "line 3: not a prediction"),
    ],
)
def test_an_edited_line_is_named(tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    path = write(tmp_path / "p.jsonl", 2).path
    lines = path.read_text().splitlines()
    lines[2] = json.dumps(change(json.loads(lines[2])))
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=message):
        PredictionsFile(path, EVALUATION).resume(BATCHES)


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(CatpError, match=r"p\.jsonl: can't be written \(No such file"):
        PredictionsFile(tmp_path / "none" / "p.jsonl", EVALUATION)
