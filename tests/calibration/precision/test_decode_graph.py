"""A copy of the language model for decode steps: who computes what, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from typer.testing import CliRunner

from catp.calibration.benchmark.costs.base import Workload
from catp.calibration.benchmark.costs.cost import cost_of
from catp.calibration.benchmark.costs.geometry import read_geometry
from catp.calibration.commands.calibrate import app
from catp.calibration.precision.report import PrecisionReport
from catp.export.demo import scenes
from catp.runtime import BundleError, Pipeline
from catp.runtime.bundle.chains import DECODE_GRAPH, GRAPHS
from catp.runtime.bundle.folder import open_bundle
from catp.runtime.commands.inspect import app as inspect_app
from catp.runtime.providers.base import to_host

pytestmark = pytest.mark.heavy

RUNNER = CliRunner()
ARGUMENTS = ("--to", "int8", "--decode", "int4", "--for", "cpu", "--questions", "50")
NEW = 6


@pytest.fixture(scope="module")
def made(demo_bundle: Path, calibrated: Callable) -> Path:
    return Path(calibrated("decode", demo_bundle, *ARGUMENTS))


def test_the_bundle_says_what_it_has(made: Path, demo_bundle: Path) -> None:
    bundle = open_bundle(made / "bundle")
    graphs = bundle.manifest.graphs
    assert list(graphs) == [*GRAPHS, DECODE_GRAPH]
    found = {name: graph.quantization.format for name, graph in graphs.items() if graph.quantization}
    assert found == dict.fromkeys(GRAPHS, "int8") | {DECODE_GRAPH: "int4"}
    prefill, decode = graphs["language_model"], graphs[DECODE_GRAPH]
    # The head has one row a prompt to read, in prefill too.
    others = [graph.quantization.others for graph in graphs.values() if graph.quantization]
    assert others == [{}, {}, {"head": "int4"}, {}]
    nodes = onnx.load(made / "bundle" / "language_model.onnx", load_external_data=False).graph.node
    (head,) = (node for node in nodes if node.op_type == "MatMulNBits")
    assert head.output[0] == "logits" and sum(node.op_type == "MatMulInteger" for node in nodes) == 2 * 6
    assert (prefill.inputs, prefill.outputs) == (decode.inputs, decode.outputs)
    report = PrecisionReport.model_validate_json((made / "report.json").read_text())
    assert report.confirmed and report.graphs is not None and report.calibration is not None
    before = open_bundle(demo_bundle).manifest.graphs["language_model"].bytes
    assert [report.graphs[name].before for name in ("language_model", DECODE_GRAPH)] == [before, before]
    assert {error.graph for error in report.errors} == {*GRAPHS, DECODE_GRAPH}
    unpruned, pruned = report.calibration.accuracy
    assert unpruned.difference >= -0.02 and pruned.difference >= -0.04  # one and two questions of 50
    shown = RUNNER.invoke(inspect_app, [str(made / "bundle")])
    assert shown.exit_code == 0
    assert f"{DECODE_GRAPH}: int4 (fp32), for cpu" in shown.stdout and "for decode steps" in shown.stdout


def test_the_first_token_comes_from_one_graph_and_the_others_from_the_other(made: Path) -> None:
    """By ONNX Runtime alone, graph by graph; two questions, so that rows end at different slots."""
    folder = made / "bundle"
    pipeline = Pipeline.load(folder)
    asked = list(scenes.examples(2, 11))
    prompts = [pipeline.tokenize(example.question.prompt) for example in asked]
    prompts[1] = prompts[1][:-2]
    pruned = pipeline.prune(pipeline.encode(pipeline.preprocess([example.image for example in asked])), 16)
    generated = pipeline.decode(pruned, prompts, NEW).token_ids

    prefill, decode = (
        ort.InferenceSession(str(folder / f"{name}.onnx"), providers=["CPUExecutionProvider"])
        for name in ("language_model", DECODE_GRAPH)
    )
    kept, longest = 16, max(map(len, prompts))
    lengths = np.array([len(prompt) for prompt in prompts])
    feeds = {
        "input_ids": np.array([prompt + [0] * (longest - len(prompt)) for prompt in prompts]),
        "prefix_embeds": to_host(pruned.kept_embeds),
        "prefix_positions": to_host(pruned.kept_indices),
        "position_start": np.full(2, 32),
        "write_indices": np.zeros(2, np.int64),
        "last_indices": kept + lengths - 1,
    }
    caches = [value for value in prefill.get_inputs() if value.name.startswith("past_")]
    for value in caches:
        feeds[value.name] = np.zeros((2, value.shape[1], 64, value.shape[3]), np.float32)
    names = ["next_token", *(value.name.replace("past_key_values", "present") for value in caches)]
    tokens = []
    session = prefill
    for step in range(NEW):
        token, *cache = session.run(names, feeds)
        tokens.append(token)
        feeds |= {value.name: array for value, array in zip(caches, cache)} | {
            "input_ids": token[:, None],
            "prefix_embeds": np.zeros((2, 0, feeds["prefix_embeds"].shape[2]), np.float32),
            "prefix_positions": np.zeros((2, 0), np.int64),
            "position_start": 32 + lengths + step,
            "write_indices": kept + lengths + step,
            "last_indices": np.zeros(2, np.int64),
        }
        session = decode
    for row, wanted in zip(generated, np.stack(tokens, 1).tolist()):
        assert row == wanted[: len(row)] and len(row) > 1


def test_decode_reads_its_own_weights(made: Path, calibrated: Callable, demo_bundle: Path) -> None:
    """What a step has to read is what one of an all-INT4 language model has to; prefill's is that of INT8."""
    workload = Workload(batch=1, num_kept=16, prompt_tokens=16, new_tokens=10)
    int4 = calibrated("cpu", demo_bundle, "--to", "int8", "--language", "int4", "--for", "cpu", "--questions", "50")
    bundles = [open_bundle(folder / "bundle", verify=False) for folder in (made, int4)]
    hybrid, coarse = (cost_of(b.manifest, read_geometry(b), workload, 0.5).stages for b in bundles)
    assert hybrid["decode"].bytes == pytest.approx(coarse["decode"].bytes, rel=0.03)
    assert hybrid["prefill"].bytes > 1.2 * coarse["prefill"].bytes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "int8", "--for", "tensorrt"], "--decode int4 for tensorrt: an engine has one copy of its weights"),
        (["--language", "int4", "--for", "cpu"], "--decode int4: the language model is int4 already"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: list[str], message: str, demo_bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    result = RUNNER.invoke(app, ["precision", str(demo_bundle), "-o", str(output), "--decode", "int4", *arguments])
    assert result.exit_code == 2 and result.stderr.startswith(f"error: {message}")
    assert not output.exists()


def test_a_decode_graph_with_other_inputs_is_refused(made: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(made / "bundle", tmp_path / "bundle"))
    manifest = json.loads((copy / "catp.json").read_text())
    del manifest["graphs"][DECODE_GRAPH]["inputs"][-1]
    (copy / "catp.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=f"{DECODE_GRAPH} has other inputs and outputs"):
        open_bundle(copy)
