"""catp-run as a user calls it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from catp.export.demo import samples
from catp.runtime.commands.run import app

RUNNER = CliRunner()
SAMPLE = samples()[0]
PAIR = ["--image", str(SAMPLE.image), "--prompt", SAMPLE.prompt]


def test_it_prints_the_right_answer(demo_bundle: Path) -> None:
    result = RUNNER.invoke(app, [str(demo_bundle), *PAIR])
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == SAMPLE.answer


def test_json_has_one_object_per_pair(demo_bundle: Path) -> None:
    pairs = [argument for s in samples() for argument in ("--image", str(s.image), "--prompt", s.prompt)]
    result = RUNNER.invoke(app, [str(demo_bundle), *pairs, "--ratio", "0.25", "--json"])
    assert result.exit_code == 0, result.output
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [a["answer"] for a in answers] == [s.answer for s in samples()]
    for answer in answers:
        assert set(answer) == {"answer", "token_ids", "kept_indices", "num_kept", "provider", "timings_ms"}
        assert answer["num_kept"] == len(answer["kept_indices"]) == 24
        assert answer["provider"] == "cpu"
        stages = {"preprocess", "vision", "qformer", "prefill", "decode_per_token", "total"}
        assert set(answer["timings_ms"]) == stages and answer["timings_ms"]["total"] > 0


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["--ratio", "1", *PAIR], "0 <= ratio < 1", 2),
        (["--ratio", "-0.5", *PAIR], "0 <= ratio < 1", 2),
        (["--ratio", "nan", *PAIR], "0 <= ratio < 1", 2),
        (["--ratio", "half", *PAIR], "--ratio", 2),
        (["--max-new-tokens", "0", *PAIR], "--max-new-tokens", 2),
        (["--positions", "sideways", *PAIR], "compact", 2),
        (["--image", str(SAMPLE.image)], "Missing option '--prompt'", 2),
        (["--nonsense", *PAIR], "No such option", 2),
        (["--provider", "cuda", *PAIR], ".[gpu]", 2),
        (["--provider", "abacus", *PAIR], "accepted: cpu, openvino, auto, cuda", 2),
        ([*PAIR, *PAIR, "--prompt", "one more"], "one prompt per image", 2),
        (["--num-beams", "0", *PAIR], "num_beams 0", 2),
        (["--early-stopping", "soon", *PAIR], "--early-stopping", 2),
        (["--stop", "", *PAIR], "stop_strings", 2),
        (["--temperature", "0.5", *PAIR], "--sample", 2),
        (["--stream", "--num-beams", "2", *PAIR], "not known before its end", 2),
        (["--stream", "--json", *PAIR], "no --json", 2),
        (["--stream", *PAIR, "--prompt", "one more"], "give one --prompt", 2),
        (["--image", "nowhere.png", "--prompt", "x"], "nowhere.png: no such file", 1),
        (["--image", __file__, "--prompt", "x"], "not an image", 1),
        (["--image", "/", "--prompt", "x"], "it is a folder", 1),
        (["--image", os.devnull, "--prompt", "x"], "a device or a pipe", 1),
        (["--image", str(SAMPLE.image), "--prompt", "\udcff\udcfe"], "not valid Unicode", 2),
        (["--image", SAMPLE.prompt * 20, "--prompt", str(SAMPLE.image)], "can't be opened", 1),
        (["--image", str(SAMPLE.image), "--prompt", "word " * 400], "at most 224 tokens", 2),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else None,
)
def test_bad_input_is_one_clear_line(demo_bundle: Path, arguments: list[str], message: str, code: int) -> None:
    result = RUNNER.invoke(app, [str(demo_bundle), *arguments])
    assert result.exit_code == code, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and message in line
    assert not result.stdout


def test_a_bf16_bundle_on_the_cpu_is_one_clear_line(bf16_bundle: Path) -> None:
    result = RUNNER.invoke(app, [str(bf16_bundle), *PAIR, "--provider", "cpu"])
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: provider cpu") and "accepted: cuda, tensorrt, tensorrt-rtx" in line


def test_bundles_that_are_none(demo_bundle: Path, tmp_path: Path) -> None:
    assert RUNNER.invoke(app, [str(tmp_path / "none"), *PAIR]).exit_code == 2
    assert RUNNER.invoke(app, ["x" * 300, *PAIR]).exit_code == 2
    copy = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    (copy / "config.json").write_text("{}")
    result = RUNNER.invoke(app, [str(copy), *PAIR])
    assert result.exit_code == 1 and "config.json" in result.stderr


def test_it_runs_where_torch_is_not_installed(demo_bundle: Path, tmp_path: Path) -> None:
    """With the imports of everything but the runtime's own dependencies made to fail."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nfor name in ('torch', 'transformers', 'onnx', 'onnxscript', 'onnx_ir', 'safetensors'):\n"
        "    sys.modules[name] = None\n"
    )
    code = "from catp.runtime.commands.run import app; app()"
    result = subprocess.run(
        [sys.executable, "-c", code, str(demo_bundle), *PAIR],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == SAMPLE.answer


def test_keep_mass_instead_of_a_ratio(demo_bundle: Path) -> None:
    result = RUNNER.invoke(app, [str(demo_bundle), *PAIR, "--keep-mass", "0.6", "--json"])
    assert result.exit_code == 0, result.output
    assert 10 < json.loads(result.stdout)["num_kept"] < 24
    both = RUNNER.invoke(app, [str(demo_bundle), *PAIR, "--keep-mass", "0.6", "--ratio", "0.5"])
    assert both.exit_code == 2 and "give one of them" in both.stderr


def test_one_image_for_several_prompts(demo_bundle: Path) -> None:
    other = "Question: what is in the top left? Answer:"
    result = RUNNER.invoke(app, [str(demo_bundle), *PAIR, "--prompt", other, "--num-beams", "3", "--ratio", "0"])
    assert result.exit_code == 0, result.output
    first, second = result.stdout.splitlines()
    assert first == f"{SAMPLE.prompt} {SAMPLE.answer}" and second.startswith(other)


def test_a_stream_ends_as_the_answer(demo_bundle: Path) -> None:
    result = RUNNER.invoke(app, [str(demo_bundle), *PAIR, "--stream"])
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{SAMPLE.answer}\n"


def test_settings_reach_the_answer(demo_bundle: Path) -> None:
    def tokens(*arguments: str) -> list[int]:
        result = RUNNER.invoke(app, [str(demo_bundle), *PAIR, "--json", *arguments])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)["token_ids"]

    usual = tokens()
    drawn = [tokens("--sample", "--temperature", "9", "--top-k", "0", "--seed", seed) for seed in ("1", "1", "2")]
    assert drawn[0] == drawn[1] != drawn[2]
    assert tokens("--sample", "--temperature", "9", "--top-k", "1") == usual
    assert len(tokens("--min-new-tokens", "9")) > 9 > len(usual)
    assert len(tokens("--no-repeat-ngram", "1", "--max-new-tokens", "5")) == 5
    assert len(tokens("--stop", "black")) < len(usual)
