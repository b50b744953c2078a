"""What --against names: runtimes and other bundles, each with a name of its own, all asked the same."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmark_reports import RATES
from typer.testing import CliRunner

from catp.calibration.benchmark.contenders.registry import find_contenders, open_bundles
from catp.calibration.benchmark.results.report import BenchmarkReport
from catp.calibration.commands.bench import app
from catp.runtime.bundle.folder import file_spec, open_bundle, write_manifest
from catp.runtime.bundle.manifest import Manifest, Quantization
from catp.runtime.errors import UsageError

RUNNER = CliRunner()


def variant(bundle: Path, folder: Path, change: Callable[[Manifest], Manifest]) -> Path:
    """A bundle with the same files and another manifest."""
    shutil.copytree(bundle, folder)
    write_manifest(folder, change(open_bundle(bundle, verify=False).manifest))
    return folder


def quantised(manifest: Manifest) -> Manifest:
    """Said to be, of one graph."""
    quantization = Quantization(
        format="int8", purpose="cpu", activations="dynamic", layers=1, bytes_before=4, bytes_after=1
    )
    graph = manifest.graphs["language_model"].model_copy(update={"quantization": quantization})
    return manifest.model_copy(update={"graphs": {**manifest.graphs, "language_model": graph}})


def test_a_bundle_is_called_as_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a/int8", "b/int8", "catp", "transformers"):
        (tmp_path / name).mkdir(parents=True)
    found = find_contenders("a/int8, transformers,./transformers,b/int8,catp,a/../a/int8,.,transformers")
    assert found == {
        "int8": Path("a/int8"), "transformers": None, "transformers-2": Path("transformers"),
        "int8-2": Path("b/int8"), "catp-2": Path("catp"), tmp_path.name: Path(),
    }  # fmt: skip
    assert find_contenders(None) == {}


@pytest.mark.parametrize("given", ["tensorflow", "", "int8,,", "x" * 5000])
def test_what_is_neither_is_refused(given: str) -> None:
    with pytest.raises(UsageError, match="folders of other bundles"):
        find_contenders(given or ",")


def test_bundles_must_be_of_one_size(demo_bundle: Path, tmp_path: Path) -> None:
    def fewer_positions(manifest: Manifest) -> Manifest:
        return manifest.model_copy(update={"text": manifest.text.model_copy(update={"max_positions": 128})})

    def unpruned(manifest: Manifest) -> Manifest:
        return manifest.model_copy(update={"vote": manifest.pruning.model_copy(update={"method": "none"})})

    short = variant(demo_bundle, tmp_path / "short", fewer_positions)
    with pytest.raises(UsageError, match=r"short: its number of positions is 128, that of .*demo-bundle is 256"):
        open_bundles(demo_bundle, {"short": short}, (0.0,))

    deeper = variant(demo_bundle, tmp_path / "deeper", lambda manifest: manifest)
    config = json.loads((deeper / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 3
    (deeper / "config.json").unlink()  # a hard link, perhaps
    (deeper / "config.json").write_text(json.dumps(config))
    manifest = open_bundle(demo_bundle).manifest
    files = tuple(file_spec(deeper, deeper / spec.path) for spec in manifest.files)
    write_manifest(deeper, manifest.model_copy(update={"files": files}))
    with pytest.raises(UsageError, match="its language model's layers is 3, that of"):
        open_bundles(demo_bundle, {"deeper": deeper}, (0.0,))

    whole = variant(demo_bundle, tmp_path / "whole", unpruned)
    with pytest.raises(UsageError, match="whole was exported with --method none"):
        open_bundles(demo_bundle, {"whole": whole}, (0.0, 0.5))
    bundles, seconds, _ = open_bundles(demo_bundle, {"whole": whole, "transformers": None}, (0.0,))
    assert list(bundles) == list(seconds) == ["catp", "whole"]


@pytest.mark.heavy
def test_a_bundle_is_timed_beside_another(demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("catp.calibration.commands.bench.measure_rates", lambda threads: RATES)
    other = variant(demo_bundle, tmp_path / "demo-int8", quantised)
    output = tmp_path / "report.json"
    arguments = ["--ratios", "0,0.5", "--batch", "1,2", "--iterations", "6", "--warmup", "1", "--threads", "1"]
    plot = str(tmp_path / "latency.png")
    # No checkpoint is asked for: that of this bundle would be unknown.
    renamed = variant(
        demo_bundle,
        tmp_path / "renamed",
        lambda m: m.model_copy(update={"model": m.model.model_copy(update={"id": "somebody's"})}),
    )
    result = RUNNER.invoke(
        app, ["run", str(renamed), "--against", str(other), *arguments, "-o", str(output), "--plot", plot]
    )
    assert result.exit_code == 0, result.output
    report = BenchmarkReport.model_validate_json(output.read_text())
    settings = [(r.batch, r.subject, r.ratio, r.num_kept) for r in report.results]
    assert settings == [
        (batch, name, ratio, kept)
        for batch in (1, 2)
        for name in ("catp", "demo-int8")
        for ratio, kept in ((0, 32), (0.5, 16))
    ]
    assert {r.agreeing_tokens for r in report.results if r.subject == "demo-int8"} == {10}
    assert {len(values) for r in report.results for values in r.samples_ms.values()} == {6}
    assert report.bundles["demo-int8"].precisions == {
        "vision_encoder": "fp32", "qformer_voting": "fp32", "language_model": "int8 (fp32), for cpu",
    }  # fmt: skip
    assert [load.verify_seconds is None for load in report.loads] == [False, False]
    assert "int8 (fp32), for cpu" in result.stderr and "Times as fast as others" in result.stderr
    assert RUNNER.invoke(app, ["compare", str(output), str(output)]).exit_code == 0
    # As the subject, it is described by the card.
    single = RUNNER.invoke(app, ["run", str(other), *arguments[2:4], "--ratios", "0", "--iterations", "1"])
    title = "vision_encoder fp32; qformer_voting fp32; language_model int8 (fp32), for cpu"
    assert title in " ".join(single.stderr.split())


def test_compile_compiles_the_three_parts(demo_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch.compile makes of them is its own affair, and takes a minute."""
    monkeypatch.setattr("catp.calibration.commands.bench.measure_rates", lambda threads: RATES)
    compiled: list[str] = []

    def compile(function: Any) -> Any:
        compiled.append(getattr(getattr(function, "__self__", None), "base_model_prefix", ""))

        def run(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return run

    monkeypatch.setattr(torch, "compile", compile)
    arguments = ["run", str(demo_bundle), "--against", "compile", "--ratios", "0", "--batch", "1", "--threads", "1"]
    arguments += ["--iterations", "1", "--warmup", "1", "--json"]
    result = RUNNER.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    report = BenchmarkReport.model_validate_json(result.stdout)
    assert len(compiled) == 4 and report.results[1].subject == "compile"
    assert report.results[1].agreeing_tokens == 10 and min(report.results[1].samples_ms["vision"]) > 0

    def fail(function: Any) -> Any:
        raise RuntimeError("No working C++ compiler found\nand more")

    monkeypatch.setattr(torch, "compile", fail)
    refused = RUNNER.invoke(app, arguments)
    assert refused.exit_code == 2
    line = refused.stderr.splitlines()[-1]
    assert "torch.compile doesn't work here (No working C++ compiler found)" in line and "such as g++" in line
