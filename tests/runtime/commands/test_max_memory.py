"""--max-memory: a bundle that is too large is refused in one line, before a graph is loaded."""

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from catp.export.demo import samples
from catp.runtime.commands import match, run, serve
from catp.runtime.providers.onnx_runtime import OrtProvider
from catp.runtime.server.serving import Serving

RUNNER = CliRunner()
SAMPLE = samples()[0]
PAIR = ["--image", str(SAMPLE.image), "--prompt", SAMPLE.prompt]


@pytest.fixture
def no_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(*_: object, **__: object) -> None:
        raise AssertionError("it was loaded")

    monkeypatch.setattr(OrtProvider, "engine", loaded)
    monkeypatch.setattr(Serving, "run", loaded)


@pytest.mark.parametrize(
    ("app", "arguments"),
    [
        (run.app, PAIR),
        (match.app, ["--image", str(SAMPLE.image), "--text", "a circle"]),
        (serve.app, []),
    ],
    ids=["run", "match", "serve"],
)
def test_too_large_a_bundle_is_refused_before_it_is_loaded(
    no_loading: None, demo_bundle: Path, app: typer.Typer, arguments: list[str]
) -> None:
    result = RUNNER.invoke(app, [str(demo_bundle), *arguments, "--max-memory", "0.05"])
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert "it needs about 0." in line and "--max-memory is 0.05; give" in line


def test_what_fits_answers(demo_bundle: Path) -> None:
    result = RUNNER.invoke(run.app, [str(demo_bundle), *PAIR, "--max-memory", "0.2"])
    assert result.exit_code == 0 and result.stdout.strip() == SAMPLE.answer, result.output


@pytest.mark.parametrize("most", ["0", "-1", "nan", "inf"])
def test_a_limit_that_is_none_is_refused(no_loading: None, demo_bundle: Path, most: str) -> None:
    for app, arguments in ((run.app, PAIR), (serve.app, [])):
        result = RUNNER.invoke(app, [str(demo_bundle), *arguments, "--max-memory", most])
        assert result.exit_code == 2 and "GB of memory, more than 0" in result.stderr


def test_beams_prompts_and_length_count(no_loading: None, demo_bundle: Path) -> None:
    """64 beams of the demo, which has two layers of 4 heads of 32 floats."""

    def needed(*more: str) -> float:
        result = RUNNER.invoke(run.app, [str(demo_bundle), *PAIR, *more, "--max-memory", "0.01"])
        return float(result.stderr.partition("cache ")[2].partition(",")[0])

    a_slot = 2 * 2 * 4 * 32 * 4 / 1e9
    assert needed("--num-beams", "64") == pytest.approx(64 * 128 * a_slot, abs=6e-4)
    assert needed("--num-beams", "64", "--max-new-tokens", "100") == pytest.approx(64 * 192 * a_slot, abs=6e-4)
    assert needed("--num-beams", "64", "--prompt", SAMPLE.prompt) == pytest.approx(128 * 128 * a_slot, abs=6e-4)
    # The model has no more positions than 256.
    assert needed("--num-beams", "64", "--max-new-tokens", "9999") == pytest.approx(64 * 256 * a_slot, abs=6e-4)


def test_every_served_bundle_counts(no_loading: None, demo_bundle: Path) -> None:
    one = RUNNER.invoke(serve.app, [str(demo_bundle), "--max-memory", "0.01", "--cache", "100"])
    two = RUNNER.invoke(serve.app, [str(demo_bundle), "--model", f"b={demo_bundle}", "--max-memory", "0.01"])
    assert "cache 0.11," in one.stderr and "weights 0.020, cache 0.14," in two.stderr
