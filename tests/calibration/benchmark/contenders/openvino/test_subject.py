"""OpenVINO as a contender of what writes: the same weights give the same tokens, with its own cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmark_reports import RATES
from transformers import AutoTokenizer
from typer.testing import CliRunner

from catp.calibration.benchmark.contenders.registry import open_contender
from catp.calibration.benchmark.contenders.subject import Case, TimedInput, make_picture
from catp.calibration.benchmark.results.report import BenchmarkReport
from catp.calibration.commands.bench import app
from catp.export.demo import scenes
from catp.export.demo.vqa import DENSE
from catp.runtime.bundle.chains import LanguageKind
from catp.runtime.errors import UsageError

pytest.importorskip("openvino", reason="an extra of its own: pip install '.[nncf]'")
pytest.importorskip("nncf", reason="an extra of its own: pip install '.[nncf]'")
from catp.calibration.benchmark.contenders.openvino.subject import OpenVinoAnswers

KINDS: dict[str, LanguageKind] = {
    "odd": "decoder-only", "instructblip": "decoder-only", "t5": "encoder-decoder",
    "instructblip_t5": "encoder-decoder", "vqa": "question-answering", "caption": "captioning",
}  # fmt: skip


def asked(tokens: int, seed: int, instructed: bool) -> TimedInput:
    """Three pictures, and token ids that every one of the tokenizers has."""
    rng = np.random.default_rng(seed)
    prompt = [2, *rng.integers(4, 40, tokens - 2).tolist(), 3]
    return TimedInput([make_picture(rng) for _ in range(3)], prompt, 12, instruction_ids=tuple(prompt) * instructed)


@pytest.mark.heavy  # converts the model anew
def test_its_tokens_are_those_of_the_checkpoint(demo_bundle: Path) -> None:
    arguments = ["--against", "transformers,openvino,openvino-int8", "--ratios", "0", "--batch", "1,3"]
    arguments += ["--iterations", "2", "--warmup", "1", "--new-tokens", "12", "--json"]
    result = CliRunner().invoke(app, [str(demo_bundle), *arguments])
    assert result.exit_code == 0, result.output
    report = BenchmarkReport.model_validate_json(result.stdout)
    for batch in (1, 3):
        theirs = report.result(Case(batch, "transformers", 0.0))
        for name in ("openvino", "openvino-int8"):
            found = report.result(Case(batch, name, 0.0))
            assert [len(row) for row in found.token_ids] == [12] * batch and found.repeatable
            assert all(min(found.samples_ms[stage]) > 0 for stage in ("vision", "qformer", "prefill", "decode"))
        # Twelve decode steps over a cache that was reset from round to round, in float32.
        assert report.result(Case(batch, "openvino", 0.0)).token_ids == theirs.token_ids
    # INT8 is another computation: its first token is still the trained model's.
    first = [row[0] for row in report.result(Case(3, "openvino-int8", 0.0)).token_ids]
    assert first == [row[0] for row in report.result(Case(3, "transformers", 0.0)).token_ids]


@pytest.mark.heavy  # converts models
@pytest.mark.parametrize("name", KINDS)
def test_its_tokens_are_those_of_generate(name: str, request: pytest.FixtureRequest) -> None:
    checkpoint, kind = str(request.getfixturevalue(f"{name}_checkpoint")), KINDS[name]
    theirs, ours = (open_contender(runtime, checkpoint, 1, kind) for runtime in ("transformers", "openvino"))
    different = set()
    for seed, (batch, tokens) in enumerate([(2, 5), (1, 13), (3, 4)]):
        given, case = asked(tokens, seed, name.startswith("instruct")), Case(batch, "openvino", 0.0)
        wanted, found = theirs.run(given, case), ours.run(given, case)
        assert found.token_ids == wanted.token_ids == ours.run(given, case).token_ids
        assert [len(row) for row in found.token_ids] == [12] * batch
        assert set(found.milliseconds) == set(wanted.milliseconds) and min(found.milliseconds.values()) >= 0
        parts = {"preprocess", "vision", "qformer", "prefill", "host"} & set(found.milliseconds)
        whole = sum(found.milliseconds[part] for part in parts) + 11 * found.milliseconds["decode"]
        assert whole == pytest.approx(found.milliseconds["total"])
        different |= {tuple(row) for row in found.token_ids}
    assert len(different) > 3  # pictures and prompts count


@pytest.mark.heavy  # converts and quantises a model
@pytest.mark.parametrize(("name", "kind"), [("t5", "encoder-decoder"), ("caption", "captioning")])
def test_int8_is_another_computation_of_the_same(name: str, kind: LanguageKind, request: pytest.FixtureRequest) -> None:
    checkpoint = str(request.getfixturevalue(f"{name}_checkpoint"))
    given, case = asked(9, 5, False), Case(3, "openvino", 0.0)
    found = []
    for int8 in (False, True):
        contender = OpenVinoAnswers("openvino", checkpoint, 1, kind, int8)
        contender.run(TimedInput(given.images, given.prompt_ids, 1), case)
        decoder: Any = contender._language_model._decoder
        found.append(decoder.get_output_tensor(0).data.copy())
    assert np.corrcoef(found[0].ravel(), found[1].ravel())[0, 1] > 0.9
    assert np.abs(found[0] - found[1]).max() > 1e-2


@pytest.mark.heavy  # converts and quantises a model
def test_int8_answers_of_a_trained_blip() -> None:
    """That its cache and its cross-attention are those of the question, twelve times in a row."""
    theirs = open_contender("transformers", str(DENSE), 1, "question-answering")
    ours = open_contender("openvino-int8", str(DENSE), 1, "question-answering")
    tokenizer: Any = AutoTokenizer.from_pretrained(DENSE)
    same = 0
    for example in scenes.examples(12, seed=3):
        question = example.question.prompt.removeprefix("Question: ").removesuffix(" Answer:")
        given = TimedInput([example.image], tokenizer(question).input_ids, 2)
        case = Case(1, "openvino-int8", 0.0)
        same += ours.run(given, case).token_ids == theirs.run(given, case).token_ids
    assert same >= 10


@pytest.mark.heavy  # exports a bundle, and converts and quantises its model
def test_it_is_timed_beside_a_bundle(
    instructblip_bundle: Path, instructblip_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("catp.calibration.commands.bench.measure_rates", lambda threads: RATES)
    arguments = ["--checkpoint", str(instructblip_checkpoint), "--against", "openvino,openvino-int8", "--batch", "2"]
    quick = ["--ratios", "0", "--iterations", "6", "--warmup", "0", "--threads", "1", "--json"]
    result = CliRunner().invoke(app, ["run", str(instructblip_bundle), *arguments, *quick])
    assert result.exit_code == 0, result.output
    report = BenchmarkReport.model_validate_json(result.stdout)
    exact, quantised = (report.result(Case(2, name, 0.0)) for name in ("openvino", "openvino-int8"))
    assert exact.agreeing_tokens == 10 and exact.repeatable and quantised.repeatable
    assert [len(row) for row in quantised.token_ids] == [10, 10]
    assert {speedup.baseline for speedup in report.speedups} == {"openvino", "openvino-int8"}


@pytest.mark.parametrize(
    ("runtime", "name", "reads"),
    [
        ("transformers", "instructblip", "the prompt, and the bundle's does not"),
        ("transformers", "odd", "no prompt, and the bundle's does"),
        pytest.param("openvino", "odd", "no prompt, and the bundle's does", marks=pytest.mark.heavy),  # converts
    ],
)
def test_a_checkpoint_whose_q_former_reads_something_else(
    runtime: str, name: str, reads: str, request: pytest.FixtureRequest
) -> None:
    checkpoint = str(request.getfixturevalue(f"{name}_checkpoint"))
    contender = open_contender(runtime, checkpoint, 1, "decoder-only")
    with pytest.raises(UsageError, match=f"--checkpoint: its Q-Former reads {reads}; give the folder"):
        contender.run(asked(5, 1, name == "odd"), Case(1, runtime, 0.0))


def test_a_checkpoint_of_another_kind_is_refused(caption_checkpoint: Path) -> None:
    with pytest.raises(UsageError, match="it is BLIP for captions, and the bundle is not; give the folder or Hub id"):
        OpenVinoAnswers("openvino", str(caption_checkpoint), 1, "question-answering")
