"""A bundle's calibration end to end: what is published, what it says of itself, and what is not published."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from typer.testing import CliRunner

from catp.calibration.commands.calibrate import app
from catp.calibration.data import open_data
from catp.calibration.data.dataset import QuestionList, VqaExample
from catp.calibration.precision.calibrator import Budget, BudgetExceeded, Calibrator, Questions, split
from catp.calibration.precision.comparison import ask
from catp.calibration.precision.recipe import make_recipe
from catp.calibration.precision.report import PrecisionReport
from catp.runtime import Pipeline, UsageError
from catp.runtime.bundle.chains import GRAPHS
from catp.runtime.bundle.folder import open_bundle
from catp.runtime.bundle.manifest import AccuracyChange
from catp.runtime.commands.inspect import app as inspect_app
from catp.runtime.commands.run import app as run_app
from catp.runtime.files import sha256

RUNNER = CliRunner()
CPU = ("--to", "int8", "--language", "int4", "--for", "cpu", "--questions", "50")
STATIC = ("--to", "int8", "--for", "cpu", "--activations", "static", "--questions", "10", "--no-sensitivity")
HARD = "qformer.encoder.layer.0.crossattention.output.dense"


def read(folder: Path) -> PrecisionReport:
    return PrecisionReport.model_validate_json((folder / "report.json").read_text())


@pytest.fixture(scope="module")
def made(demo_bundle: Path, calibrated: Callable) -> Path:
    return Path(calibrated("cpu", demo_bundle, *CPU))


@pytest.fixture(scope="module")
def hard_bundle(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo, with one layer that reads a channel 100,000 times as large as the others.

    It computes the same: what the cross-attention's value multiplies by, the layer after it divides by.
    """
    folder = tmp_path_factory.mktemp("hard") / "bundle"
    folder.mkdir()
    for path in demo_bundle.iterdir():
        if path.is_file() and not path.name.startswith("qformer_voting"):
            (folder / path.name).write_bytes(path.read_bytes())
    model = onnx.load(demo_bundle / "qformer_voting.onnx")
    scopes = {
        node.name: [p.value for p in node.metadata_props if p.key.endswith("name_scopes")] for node in model.graph.node
    }
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}

    def product(module: str) -> onnx.NodeProto:
        (found,) = (n for n in model.graph.node if n.op_type == "MatMul" and f"'{module}'" in "".join(scopes[n.name]))
        return found

    def multiply(tensor: str, where: Any, factor: float) -> None:
        array = numpy_helper.to_array(tensors[tensor]).copy()
        array[where] *= factor
        tensors[tensor].CopyFrom(numpy_helper.from_array(array, tensor))

    value = product(HARD.replace("output.dense", "attention.value"))
    (bias,) = (name for n in model.graph.node if value.output[0] in n.input for name in n.input if name in tensors)
    multiply(value.input[1], (slice(None), 5), 1e5)
    multiply(bias, 5, 1e5)
    multiply(product(HARD).input[1], 5, 1e-5)
    path = folder / "qformer_voting.onnx"
    onnx.save(model, path, save_as_external_data=True, location="qformer_voting.onnx_data", size_threshold=1024)
    manifest = json.loads((folder / "catp.json").read_text())
    spec = manifest["graphs"]["qformer_voting"]
    for entry in (spec["file"], spec["external_data"]):
        entry |= {"size": (folder / entry["path"]).stat().st_size, "sha256": sha256(folder / entry["path"])}
    (folder / "catp.json").write_text(json.dumps(manifest))
    return folder


def accuracies(bundle: Path, questions: Sequence[VqaExample], ratio: float) -> tuple[np.ndarray, list[list[int]]]:
    """Exact match of every question and the tokens kept, asked as a user would."""
    pipeline = Pipeline.load(bundle, verify=False)
    right, kept = [], []
    for start in range(0, len(questions), 8):  # in the batches of the product: dynamic scales are a batch's
        batch = questions[start : start + 8]
        for question, answer in zip(
            batch, pipeline.generate([q.image for q in batch], [q.prompt for q in batch], ratio)
        ):
            right.append(float(answer.answer == question.answers[0]))
            kept.append(answer.kept_indices)
    return np.array(right), kept


def test_what_it_costs_is_within_limits(made: Path) -> None:
    report = read(made)
    assert report.confirmed and report.calibration is not None and report.trials[0].fits and not report.trials[0].kept
    assert report.calibration.kept_overlap >= 0.98
    unpruned, pruned = report.calibration.accuracy
    assert (unpruned.ratio, pruned.ratio) == (0.0, 0.5) and report.calibration.questions == 50
    assert unpruned.difference >= -0.02 and pruned.difference >= -0.04  # one and two questions of 50
    for change in (unpruned, pruned):
        assert change.after - change.before == pytest.approx(change.difference)
        assert change.interval_95[0] < change.difference < change.interval_95[1]
    assert report.graphs is not None
    for name, size in report.graphs.items():
        found = size.quantization
        assert found is not None and size.after < size.before / 1.9
        assert found.bytes_before / found.bytes_after >= (6 if name == "language_model" else 3.5)


def test_what_it_says_it_costs_is_what_it_costs(made: Path, demo_bundle: Path) -> None:
    """Both bundles asked once more, without the product's own comparison."""
    report = read(made)
    assert report.calibration is not None
    asked = split(open_data("demo"), 16, 50, 0)
    for change in report.calibration.accuracy:
        before, kept_before = accuracies(demo_bundle, asked.confirmation, change.ratio)
        after, kept_after = accuracies(made / "bundle", asked.confirmation, change.ratio)
        assert (change.before, change.after) == pytest.approx((before.mean(), after.mean()))
    overlap = [len({*one} & {*other}) / len(one) for one, other in zip(kept_before, kept_after, strict=True)]
    assert report.calibration.kept_overlap == pytest.approx(np.mean(overlap)) and np.mean(overlap) < 1


def test_the_manifest_says_what_is_in_the_files(
    made: Path, demo_bundle: Path, quantised_products: Callable[[onnx.GraphProto], int]
) -> None:
    folder, report = made / "bundle", read(made)
    before, after = open_bundle(demo_bundle).manifest, open_bundle(folder).manifest
    assert after.calibration == report.calibration and after.parity == () and report.model == after.model
    assert after.calibration is not None and after.calibration.source_sha256 == {
        name: sha256(demo_bundle / f"{name}.onnx") for name in GRAPHS
    }
    assert (after.calibration.data, after.calibration.samples, after.calibration.seed) == (
        "demo",
        0,
        0,
    )  # dynamic: no ranges
    for name in GRAPHS:
        old, new = before.graphs[name], after.graphs[name]
        assert (new.inputs, new.outputs, new.precision) == (old.inputs, old.outputs, "fp32")
        found = new.quantization
        assert found is not None and report.graphs is not None and report.graphs[name].quantization == found
        model = onnx.load(folder / f"{name}.onnx")
        assert new.operators == len(model.graph.node)
        assert quantised_products(model.graph) == found.layers and not found.kept and found.ranges is None
        assert (found.purpose, found.block_size) == ("cpu", 128 if name == "language_model" else None)
        assert (found.format, found.activations) == (
            ("int4", "float") if name == "language_model" else ("int8", "dynamic")
        )
        kinds = Counter(t.data_type for t in model.graph.initializer if t.name.endswith(".int8"))
        assert found.tables == kinds[onnx.TensorProto.INT8] == (2 if name == "language_model" else 0)
        stored = [t for t in model.graph.initializer if ".weight_" in t.name]
        assert found.bytes_after == sum(numpy_helper.to_array(t).nbytes for t in stored)
        assert (report.graphs[name].before, report.graphs[name].after) == tuple(
            sum((where / f"{name}.{end}").stat().st_size for end in ("onnx", "onnx_data"))
            for where in (demo_bundle, folder)
        )
    assert {path.name for path in folder.iterdir()} == {"catp.json", *(spec.path for spec in after.all_files())}
    for spec in after.files:
        assert (folder / spec.path).read_bytes() == (demo_bundle / spec.path).read_bytes()


def test_every_layer_was_measured(made: Path, float_graphs: Callable, demo_bundle: Path) -> None:
    report = read(made)
    layers = {(name, layer.name): layer for name, graph in float_graphs(demo_bundle).items() for layer in graph.layers}
    assert {error.key for error in report.errors} == set(layers) and len(report.errors) == len(layers)
    assert [error.error for error in report.errors] == sorted((error.error for error in report.errors), reverse=True)
    assert all(0 < error.error < 1 and error.megabytes == layers[error.key].nbytes / 1e6 for error in report.errors)
    assert read(made).errors[0].graph == "language_model"  # int4 is coarser than int8


def test_it_runs_and_is_shown(made: Path) -> None:
    image = Path(__file__).parents[3] / "export/demo/images/scene-a.png"
    prompt = "Question: what is in the bottom right? Answer:"
    result = RUNNER.invoke(run_app, [str(made / "bundle"), "--image", str(image), "--prompt", prompt])
    assert result.exit_code == 0 and result.stdout.splitlines()[-1] == "a black diamond"
    shown = RUNNER.invoke(inspect_app, [str(made / "bundle")])
    assert shown.exit_code == 0
    for part in ("vision_encoder: int8 (fp32), for cpu", "language_model: int4 (fp32), for cpu", "calibrated: exact"):
        assert part in shown.stdout


def test_one_seed_gives_the_same_bytes(
    demo_bundle: Path, calibrated: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranges included, which are gathered anew."""
    monkeypatch.setenv("CATP_CACHE_DIR", str(tmp_path / "cache"))
    first = calibrated("cpu-static", demo_bundle, *STATIC) / "bundle"
    monkeypatch.setenv("CATP_CACHE_DIR", str(tmp_path / "other"))
    few = ["--samples", "16", "--max-accuracy-drop", "0.2", "--min-kept-overlap", "0.8"]
    result = RUNNER.invoke(app, ["precision", str(demo_bundle), "-o", str(tmp_path / "again"), *few, *STATIC])
    assert result.exit_code == 0, result.output
    for name in GRAPHS:
        for end in ("onnx", "onnx_data"):
            assert (first / f"{name}.{end}").read_bytes() == (tmp_path / "again" / f"{name}.{end}").read_bytes()
        found = open_bundle(first).manifest.graphs[name].quantization
        assert found is not None and (found.activations, found.ranges) == ("static", "minmax")
    assert (first / "catp.json").read_bytes() == (tmp_path / "again" / "catp.json").read_bytes()


def test_excluded_layers_stay(
    demo_bundle: Path, tmp_path: Path, quantised_products: Callable[[onnx.GraphProto], int]
) -> None:
    arguments = ["--vision", "int8", "--for", "cpu", "--exclude", "*.mlp.fc2", "--exclude", "*.1.self_attn.*"]
    few = ["--samples", "16", "--questions", "5", "--no-sensitivity", "--min-kept-overlap", "0.8"]
    output = tmp_path / "out"
    result = RUNNER.invoke(app, ["precision", str(demo_bundle), "-o", str(output), *arguments, *few, "--json"])
    assert result.exit_code == 0, result.output
    graphs = open_bundle(output).manifest.graphs
    found = graphs["vision_encoder"].quantization
    layers = "vision_model.encoder.layers."
    assert found is not None and {name.removeprefix(layers) for name in found.kept} == {
        *(f"{i}.mlp.fc2" for i in range(4)), "1.self_attn.qkv", "1.self_attn.projection"
    }  # fmt: skip
    graph = onnx.load(output / "vision_encoder.onnx", load_external_data=False).graph
    kept = sum(node.op_type == "MatMul" for node in graph.node)
    assert (quantised_products(graph), kept) == (found.layers, len(found.kept)) == (10, 6)
    for name in ("qformer_voting", "language_model"):
        assert graphs[name].quantization is None
        assert (output / f"{name}.onnx_data").read_bytes() == (demo_bundle / f"{name}.onnx_data").read_bytes()
    assert json.loads(result.stdout)["errors"] == []


def test_what_suffers_most_stays_in_floating_point(
    hard_bundle: Path,
    demo_bundle: Path,
    tmp_path: Path,
    quantised_products: Callable[[onnx.GraphProto], int],
) -> None:
    asked = split(open_data("demo"), 16, 8, 0).search
    assert accuracies(hard_bundle, asked, 0.5)[1] == accuracies(demo_bundle, asked, 0.5)[1]  # it computes the same
    output, path = tmp_path / "out", tmp_path / "report.json"
    arguments = ["--qformer", "int8", "--for", "cpu", "--samples", "16", "--questions", "20"]
    limits = ["--max-accuracy-drop", "0.1", "--min-kept-overlap", "0.95"]
    result = RUNNER.invoke(
        app, ["precision", str(hard_bundle), "-o", str(output), *arguments, *limits, "--report", str(path)]
    )
    assert result.exit_code == 0, result.output
    report = PrecisionReport.model_validate_json(path.read_text())
    assert report.errors[0].key == ("qformer_voting", HARD) and report.errors[0].error > 3 * report.errors[1].error
    assert [(trial.kept, trial.fits) for trial in report.trials] == [
        ((), False),
        ((f"qformer_voting: {HARD}",), True),
    ]
    bad, good = report.trials
    assert bad.kept_overlap < 0.95 or min(change.difference for change in bad.accuracy) < -0.1
    assert good.kept_overlap >= 0.95 and report.confirmed
    found = open_bundle(output).manifest.graphs["qformer_voting"].quantization
    assert found is not None and found.kept == (HARD,) and found.layers == 27
    graph = onnx.load(output / "qformer_voting.onnx", load_external_data=False).graph
    assert quantised_products(graph) == 27
    printed = " ".join(result.stderr.split())
    assert "Layers kept in floating point" in printed and "1 kept" in printed


def only_the_hard_layer() -> list[str]:
    return ["*.attention.*", "*intermediate*", "*output_query*", "*layer.2.*", "projection"]


def test_a_budget_that_can_not_be_met_publishes_nothing(hard_bundle: Path, tmp_path: Path) -> None:
    output, path = tmp_path / "out", tmp_path / "report.json"
    arguments = ["--qformer", "int8", "--for", "cpu", "--samples", "16", "--questions", "20", "--no-sensitivity"]
    exclude = [part for pattern in only_the_hard_layer() for part in ("--exclude", pattern)]
    result = RUNNER.invoke(
        app, ["precision", str(hard_bundle), "-o", str(output), *arguments, *exclude, "--report", str(path), "--json"]
    )
    assert result.exit_code == 1 and "Traceback" not in result.output
    printed = " ".join(result.stderr.split())
    assert "quantising costs too much; nothing was published" in printed and "--min-kept-overlap" in printed
    assert not output.exists() and [p.name for p in tmp_path.iterdir()] == ["report.json"]
    report = PrecisionReport.model_validate_json(path.read_text())
    assert result.stdout == report.model_dump_json() + "\n"
    assert [(trial.kept, trial.fits) for trial in report.trials] == [((), False)]
    assert (report.confirmed, report.calibration, report.graphs) == (False, None, None)
    assert [error.key for error in report.errors] == [("qformer_voting", HARD)]


def test_what_the_other_half_does_not_confirm_is_not_published(
    hard_bundle: Path, questions: Callable, tmp_path: Path
) -> None:
    """The halves as bad luck could draw them: quantising costs answers in one of them only."""
    pool, source = questions(40), open_bundle(hard_bundle)
    recipes = {"qformer_voting": make_recipe("int8", "cpu")}

    def calibrator(search: list[VqaExample], confirmation: list[VqaExample]) -> Calibrator:
        asked = Questions("mine", "0" * 64, "exact match", pool[:16], search, confirmation)
        return Calibrator(source, recipes, asked, exclude=only_the_hard_layer(), batch_size=1)

    calibrator(pool[:2], pool[2:4]).run(tmp_path / "all", Budget(0.99, 0.0), sensitivity=False)
    before, after = (
        ask(path, pool, "exact match", 0, 1, lambda _: None).accuracy for path in (hard_bundle, tmp_path / "all")
    )
    worse = (after < before).any(axis=1)
    assert 3 <= worse.sum() <= 37
    same, lost = ([q for q, bad in zip(pool, worse) if bad == wanted] for wanted in (False, True))
    with pytest.raises(BudgetExceeded, match="chosen on one half of the images costs too much on the other") as caught:
        calibrator(same, lost).run(tmp_path / "out", Budget(0.0, 0.0))
    report = caught.value.report
    assert report.trials[-1].fits and not report.confirmed and report.calibration is not None
    assert min(change.difference for change in report.calibration.accuracy) < -0.3
    assert report.calibration.questions == len(lost) and not (tmp_path / "out").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"all"}


def test_halves_have_no_image_in_common() -> None:
    asked = split(open_data("demo"), 16, 40, 3)
    assert (len(asked.samples), len(asked.search), len(asked.confirmation)) == (16, 40, 40)
    images = [{question.image_key for question in part} for part in (asked.samples, asked.search, asked.confirmation)]
    assert images[0] <= images[1] and not images[1] & images[2]
    assert [q.id for q in split(open_data("demo"), 16, 40, 3).search] == [q.id for q in asked.search]
    assert {q.id for q in split(open_data("demo"), 16, 40, 4).search} != {q.id for q in asked.search}
    with pytest.raises(UsageError, match="15 samples are too few to choose ranges by; give at least 16"):
        split(open_data("demo"), 15, 40, 0)
    # Halves are of whole images: with many questions to an image, more have to be drawn than are used.
    question = next(iter(open_data("demo")))
    crowded = QuestionList(
        "crowded",
        [replace(question, id=f"{image}.{i}", image_key=f"{image}") for image in range(20) for i in range(50)],
    )
    for seed in range(8):
        assert len(split(crowded, 16, 16, seed).samples) == len(split(crowded, 16, 16, seed).confirmation) == 16


def test_budgets() -> None:
    def lost(*differences: float) -> list[AccuracyChange]:
        return [
            AccuracyChange(ratio=0.5, before=1, after=1 + d, difference=d, interval_95=(-1, 1)) for d in differences
        ]

    budget = Budget(0.01, 0.98)
    assert budget.allows(lost(0.0, -0.01), 0.98) and budget.allows(lost(0.3), 1.0)
    assert budget.allows(lost(float(np.mean([-1.0] + [0.0] * 99))), 1 - 0.02)
    assert not budget.allows(lost(0.0, -0.011), 1.0) and not budget.allows(lost(0.0), 0.979)
    for wrong in ((1.0, 0.5), (-0.1, 0.5), (float("nan"), 0.5)):
        with pytest.raises(UsageError, match=r"max accuracy drop .*such as 0\.01"):
            Budget(*wrong)
    for wrong in ((0.0, 1.1), (0.0, -0.1), (0.0, float("nan"))):
        with pytest.raises(UsageError, match=r"min kept overlap .*such as 0\.98"):
            Budget(*wrong)
