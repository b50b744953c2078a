"""catp-eval as a user calls it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner, Result
from vqa_folder import ACCURACY_BY_TYPE, CASES, MEAN_ACCURACY, READABLE, write_vqa_folder

from catp.calibration.accuracy.report import AccuracyReport
from catp.calibration.commands.eval import app
from catp.export.demo import CHECKPOINT
from catp.export.image_encoders.plan import EncoderOptions
from catp.runtime import Pipeline

RUNNER = CliRunner()


def call(*arguments: object) -> Result:
    return RUNNER.invoke(app, [str(argument) for argument in arguments])


def report(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    content: dict[str, Any] = json.loads(result.stdout)
    assert AccuracyReport.model_validate(content).schema_version == 1
    return content


def test_the_demo_has_both_position_modes_of_its_own_method(demo_bundle: Path) -> None:
    result = call(demo_bundle, "--limit", 12, "--ratios", "0,0.5")
    assert result.exit_code == 0 and not result.stdout
    title, *lines = result.stderr.splitlines()
    assert title.strip() == "Exact match, catp, 12 questions of demo (95 % interval)"
    rows = [line.split("│")[1:-1] for line in lines if "│" in line and "%" in line]
    assert [(row[0].strip(), row[1].strip(), len(row)) for row in rows] == [("0", "32", 4), ("0.5", "16", 4)]
    lost = [line.split("│")[1:-1] for line in lines if "│ catp" in line]
    assert [[cell.strip() for cell in row[:3]] for row in lost] == [["catp", "0.5", p] for p in ("original", "compact")]


def test_vqa_accuracy_is_that_worked_out_by_hand(demo_bundle: Path, tmp_path: Path) -> None:
    vqa = write_vqa_folder(tmp_path / "vqa")
    files = {name: tmp_path / name for name in ("p.jsonl", "report.json", "curve.png")}
    result = call(
        demo_bundle, "--data", vqa, "--ratios", "0,0.9", "--predictions", files["p.jsonl"], "-o", files["report.json"],
        "--plot", files["curve.png"], "--json",
    )  # fmt: skip
    content = report(result)
    assert content == json.loads(files["report.json"].read_text())
    assert content["evaluation"]["data"] == "VQA v2 val2014"
    assert content["evaluation"]["methods"] == ["catp", "random"]
    assert content["evaluation"]["positions"] == ["original"]
    full = content["scores"][0]
    assert (full["ratio"], full["tokens_kept"], full["questions"]) == (0, 32, len(READABLE))
    assert full["accuracy"] == pytest.approx(MEAN_ACCURACY)
    by_type = {kind: share["accuracy"] for kind, share in full["by_answer_type"].items()}
    assert by_type == pytest.approx(ACCURACY_BY_TYPE)
    assert content["interval"] == "bootstrap over images"
    (difference,) = content["differences"]
    assert (difference["method"], difference["against"], difference["ratio"]) == ("catp", "random", 0.9)
    assert [(loss["method"], loss["ratio"]) for loss in content["losses"]] == [("catp", 0.9), ("random", 0.9)]
    # Two readable images, so four choices of signs: the least possible p is 0.5.
    assert content["test"] == "sign flips by image" and content["losses"][0]["p_value"] in (0.5, 1.0)
    assert {found["finding"] for found in (difference, *content["losses"])} == {"no difference shown"}
    # The cut-off and the missing picture are named everywhere, and counted.
    assert content["skipped"] == 2
    assert [skipped["id"] for skipped in content["skipped_first"]] == ["133000", "136000"]
    lines = [json.loads(line) for line in files["p.jsonl"].read_text().splitlines()][1:]
    assert ["broken or truncated" in line.get("error", "") for line in lines] == [False] * 8 + [True, False]
    assert lines[9]["error"].endswith("COCO_val2014_000000000136.jpg: no such file")
    answers = {int(line["id"]): line["answers"][0] for line in lines[:8]}
    assert answers == {case.question_id: case.prediction for case in READABLE}
    assert f"warning: 2 of {len(CASES)} questions could not be asked" in result.stderr
    assert "000000000136.jpg: no such file" in result.stderr
    with Image.open(files["curve.png"]) as picture:
        assert picture.format == "PNG"


def test_the_protocol_of_blip_2_is_one_command(demo_bundle: Path, tmp_path: Path) -> None:
    """Beam 5, length penalty -1, and a prompt, on VQAv2 as its zip files unpack."""
    vqa, kept = write_vqa_folder(tmp_path / "vqav2"), tmp_path / "p.jsonl"
    template = "Question: {question} Short answer:"
    arguments = [demo_bundle, "--data", vqa, "--ratios", "0,0.5", "--methods", "catp", "--predictions", kept, "--json"]
    protocol = ["--num-beams", 5, "--length-penalty", -1, "--max-new-tokens", 10, "--prompt-template", template]
    content = report(call(*arguments, *protocol))
    asked = content["evaluation"]
    assert (asked["prompt_template"], asked["max_new_tokens"]) == (template, 10)
    assert (asked["generation"]["num_beams"], asked["generation"]["length_penalty"]) == (5, -1.0)
    answers = {line["id"]: line.get("answers") for line in map(json.loads, kept.read_text().splitlines()[1:])}
    pipeline = Pipeline.load(demo_bundle)
    for case in READABLE:
        image = vqa / "val2014" / f"COCO_val2014_{case.image_id:012d}.jpg"
        for column, ratio in enumerate((0, 0.5)):
            (answer,) = pipeline.generate(
                [image], [template.replace("{question}", case.question)], ratio, max_new_tokens=10, num_beams=5,
                length_penalty=-1.0,
            )  # fmt: skip
            assert answers[str(case.question_id)][column] == answer.answer
    # Other settings don't go on with these answers.
    before = kept.read_bytes()
    for changed, words in (
        (["--num-beams", 4, *protocol[2:]], "generation num_beams 5, length_penalty -1.0, not num_beams 4, length"),
        (protocol[:-2], 'prompt template "Question: {question} Short answer:", not "Question: {question} Answer:"'),
        ([*protocol[:4], *protocol[6:]], "max new tokens 10, not none"),
    ):
        refused = call(*arguments, *changed)
        (line,) = refused.stderr.splitlines()
        assert refused.exit_code == 2 and words in line and kept.read_bytes() == before
    assert report(call(*arguments, *protocol)) == content


def test_drawn_answers_are_the_seeds(demo_bundle: Path) -> None:
    arguments = [demo_bundle, "--limit", 12, "--ratios", "0.75", "--positions", "original", "--json"]
    drawn = ["--sample", "--temperature", 2, "--top-k", 0, "--top-p", 0.9]
    first, again = (report(call(*arguments, *drawn)) for _ in range(2))
    assert first == again and first["evaluation"]["generation"]["temperature"] == 2
    others = [report(call(*arguments, *drawn, "--seed", seed))["scores"][0]["accuracy"] for seed in (1, 2, 3)]
    assert others != [first["scores"][0]["accuracy"]] * 3


def test_a_run_that_was_killed_goes_on(demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [demo_bundle, "--limit", 20, "--ratios", "0,0.75", "--methods", "catp,random", "--json"]
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    expected = call(*arguments, "--predictions", whole)
    decode, calls = Pipeline.decode, iter(range(100))

    def decode_and_be_killed(*arguments: Any) -> Any:
        if next(calls) == 7:
            raise KeyboardInterrupt
        return decode(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Pipeline, "decode", decode_and_be_killed)
        assert call(*arguments, "--predictions", killed).exit_code != 0
    written = killed.read_bytes()
    assert 1 < written.count(b"\n") < 21
    killed.write_bytes(written[:-40])  # and the last line was not finished
    result = call(*arguments, "--predictions", killed)
    assert result.stdout == expected.stdout and result.stderr == expected.stderr
    assert killed.read_bytes() == whole.read_bytes()
    # Where all is answered nothing is asked again.
    monkeypatch.setattr(Pipeline, "decode", None)
    assert call(*arguments, "--predictions", killed).stdout == expected.stdout
    refused = call(*arguments, "--seed", 5, "--predictions", killed)
    assert refused.exit_code == 2 and "begun with seed 2024, not 5" in refused.stderr


def test_methods_are_compared_at_every_ratio(diagnostics_bundle: Path) -> None:
    methods = ["catp", "coverage", "distinct", "l2-norm", "self-attention", "random"]
    result = call(
        diagnostics_bundle, "--limit", 40, "--ratios", "0,0.75", "--keep-mass", "0.5", "--positions", "compact",
        "--methods", ",".join(methods), "--json",
    )  # fmt: skip
    content = report(result)
    scores = {(score["method"], score["ratio"]): score for score in content["scores"]}
    assert [scores[method, 0]["accuracy"] for method in methods] == [scores["catp", 0]["accuracy"]] * 6
    assert len({scores[method, 0.75]["accuracy"] for method in methods}) > 2
    assert scores["coverage", 0.75]["accuracy"] > scores["catp", 0.75]["accuracy"]
    assert ("random", None) not in scores and 1 < scores["catp", None]["tokens_kept"] < 32
    pairs = {(d["method"], d["against"]): d["difference"] for d in content["differences"]}
    assert len(pairs) == 4 * 2 + 1  # four methods against catp and random, and catp against random
    for (method, against), difference in pairs.items():
        assert difference == pytest.approx(scores[method, 0.75]["accuracy"] - scores[against, 0.75]["accuracy"])
    # All tokens are one row, whatever the method; 0.75 and the share of the votes have accuracy and differences.
    assert result.stderr.count("│ any ") == 1 and result.stderr.count("│ coverage ") == 4
    losses = {(loss["method"], loss["ratio"]): loss for loss in content["losses"]}
    assert set(losses) == {(method, 0.75) for method in methods} | {(m, None) for m in methods if m != "random"}
    assert (content["test"], content["comparisons"]) == ("McNemar's exact test", 9 + 11)
    assert losses["random", 0.75]["finding"] == "difference shown" and "minus ratio 0" in result.stderr
    assert "p corrected for 20 comparisons" in result.stderr


def test_a_checkpoint_is_exported_for_the_run(diagnostics_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exported: list[Path] = []

    def export_bundle(model: str, output: Path, **options: object) -> None:
        assert model == str(CHECKPOINT) and options["diagnostics"] and options["adapter"] is None
        assert options["encoder"] == EncoderOptions()
        shutil.copytree(diagnostics_bundle, output)
        exported.append(output)

    monkeypatch.setattr("catp.export.exporter.export_bundle", export_bundle)
    content = report(call(CHECKPOINT, "--limit", 4, "--ratios", "0.9", "--json"))
    assert content["evaluation"]["methods"] == [
        "catp", "coverage", "distinct", "l2-norm", "self-attention", "random"
    ]  # fmt: skip
    assert not exported[0].exists()


def test_it_fails_where_no_image_can_be_read(demo_bundle: Path, tmp_path: Path) -> None:
    line = {"image": "later.png", "question": "what is in the center?", "answer": "nothing"}
    data, kept = tmp_path / "mine.jsonl", tmp_path / "p.jsonl"
    data.write_text(json.dumps(line) + "\n")
    arguments = [demo_bundle, "--data", data, "--ratios", "0", "--methods", "catp", "--predictions", kept, "--json"]
    result = call(*arguments)
    (message,) = result.stderr.splitlines()
    assert result.exit_code == 1
    assert message.endswith(f"none of 1 questions could be asked; the first: image {tmp_path}/later.png: no such file")
    # Once the picture is there, the same call goes through.
    Image.new("RGB", (96, 96), "white").save(tmp_path / "later.png")
    assert report(call(*arguments))["questions"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ratios", "0,one"], "separated by commas"),
        (["--ratios", "0.5,1"], "0 <= ratio < 1"),
        (["--keep-mass", "2"], "0 < mass <= 1"),
        (["--keep-mass", "some"], "keep mass 'some': give numbers"),
        (["--keep-mass", "0.5", "--methods", "random"], "name another method"),
        (["--methods", "coverage"], "accepted: catp, random"),
        (["--positions", "sideways"], "compact"),
        (["--data", "x"], "accepted: demo"),
        (["--limit", "0"], "at least 1"),
        (["--limit", "5", "--fraction", "0.5"], "give one of them"),
        (["--engines", "some"], "engines are for tensorrt"),
        (["-o", "none/report.json"], "there is no folder none"),
        (["--predictions", "/"], "it is a folder"),
        (["--predictions", __file__], "not a file that"),
        (["--plot", "curve.svg"], "ends in .png"),
        (["--prompt-template", "what?"], "prompt template 'what?': it has {question} 0 times"),
        (["--length-penalty", "-1"], "length_penalty -1.0: it is of use in a beam search; give num_beams"),
        (["--temperature", "0.5"], "of use where tokens are drawn"),
        (["--num-beams", "0"], "num_beams 0: "),
        (["--max-new-tokens", "0"], "max new tokens 0: at least 1"),
        (["--min-new-tokens", "9", "--max-new-tokens", "8"], "min new tokens 9: more than max new tokens, 8"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else None,
)
def test_bad_input_is_one_clear_line(demo_bundle: Path, arguments: list[str], message: str) -> None:
    result = call(demo_bundle, *arguments)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and message in line
    assert not result.stdout


@pytest.mark.parametrize("name", ["nothing", "{}/nothing", "{}", "x" * 300])
def test_what_is_neither_bundle_nor_checkpoint_is_refused(tmp_path: Path, name: str) -> None:
    result = call(name.format(tmp_path))
    (line,) = result.stderr.splitlines()
    assert result.exit_code == 2 and "give a bundle that catp-export wrote, or a checkpoint" in line


def test_a_bundle_needs_no_torch(demo_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nfor name in ('torch', 'transformers', 'onnx', 'onnxscript', 'matplotlib', 'safetensors'):\n"
        "    sys.modules[name] = None\n"
    )
    code = "from catp.calibration.commands.eval import app; app()"

    def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-c", code, *map(str, arguments), "--limit", "4", "--ratios", "0", "--json"]
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    result = run(demo_bundle)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["questions"] == 4
    for arguments, extra in ((CHECKPOINT,), "export,cpu"), ((demo_bundle, "--plot", tmp_path / "curve.png"), "eval"):
        result = run(*arguments)
        assert result.returncode == 2 and f"pip install '.[{extra}]'" in result.stderr
