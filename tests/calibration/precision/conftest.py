"""What the tests of calibrated precision share: a cache of their own, inputs for graphs, calibrated bundles."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper
from typer.testing import CliRunner

from catp.calibration.commands.calibrate import app
from catp.calibration.data.dataset import VqaExample
from catp.calibration.precision.formats.base import single_layer
from catp.calibration.precision.graphs.graph import FloatGraph
from catp.calibration.precision.graphs.layers import Layer
from catp.export.demo import scenes
from catp.export.demo.nlvr import CHECKPOINT as PAIRS_CHECKPOINT
from catp.export.exporter import export_bundle
from catp.runtime.bundle.chains import GRAPHS
from catp.runtime.bundle.folder import open_bundle

Arrays = dict[str, np.ndarray]
Run = Callable[[bytes | Path, Path, Mapping[str, np.ndarray]], Arrays]
Feeds = Callable[[Path, str], Arrays]
Calibrated = Callable[..., Path]


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CATP_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def questions() -> Callable[..., list[VqaExample]]:
    """`questions(count, seed)`: about fresh scenes."""

    def make(count: int, seed: int = 5) -> list[VqaExample]:
        before, after = len("Question: "), -len(" Answer:")
        return [
            VqaExample(
                f"{seed}-{i}", e.image, e.question.prompt[before:after], (e.question.answer,), "x", f"{seed}-{i}"
            )
            for i, e in enumerate(scenes.examples(count, seed))
        ]

    return make


@pytest.fixture(scope="session")
def run() -> Run:
    """`run(model, folder, inputs)`: all outputs, by ONNX Runtime alone."""

    def compute(model: bytes | Path, folder: Path, inputs: Mapping[str, np.ndarray]) -> Arrays:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        if isinstance(model, bytes):
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        session = ort.InferenceSession(
            model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
        )
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))

    return compute


@pytest.fixture(scope="session")
def feeds() -> Feeds:
    """`feeds(bundle, graph)`: random inputs that its manifest allows, two images or prompts."""

    def make(bundle: Path, graph: str) -> Arrays:
        rng = np.random.default_rng(7)
        manifest = open_bundle(bundle, verify=False).manifest
        tokens = manifest.pruning.num_query_tokens
        sizes: dict[str, int] = {"batch": 2, "seq": 5, "num_kept": 3, "max_length": 32}
        values: Arrays = {
            "num_kept": np.array([tokens // 2]),
            "input_ids": rng.integers(4, 100, (2, 5)),
            "prefix_positions": np.array([[0, 2, 5], [1, 3, 4]]),
            "position_start": np.full(2, tokens),
            "write_indices": np.zeros(2, np.int64),
            "last_indices": np.array([7, 6]),
        }
        inputs = {}
        for spec in manifest.graphs[graph].inputs:
            shape = [size if isinstance(size, int) else sizes[size] for size in spec.shape]
            random = np.zeros(shape) if spec.name.startswith("past_") else rng.normal(size=shape)
            inputs[spec.name] = values.get(spec.name, random).astype(spec.dtype)
            assert inputs[spec.name].shape == tuple(shape), spec
        return inputs

    return make


@pytest.fixture(scope="session")
def float_fragment() -> Callable[[Layer], onnx.GraphProto]:
    """What a format makes of a layer, only that nothing is quantised."""

    def make(layer: Layer) -> onnx.GraphProto:
        if not layer.is_table:
            return single_layer(layer).graph
        table, product = f"{layer.node}.weight", f"{layer.node}.product"
        kind = helper.np_dtype_to_tensor_dtype(layer.weight().dtype)
        return helper.make_graph(
            [helper.make_node("Gather", [table, layer.input], [product], name=product)],
            layer.node,
            [helper.make_tensor_value_info(layer.input, onnx.TensorProto.INT64, None)],
            [helper.make_tensor_value_info(product, kind, None)],
            [numpy_helper.from_array(layer.weight(), table)],
        )

    return make


@pytest.fixture(scope="session")
def float_graphs() -> Callable[[Path], dict[str, FloatGraph]]:
    return lambda bundle: {name: FloatGraph(name, bundle / f"{name}.onnx") for name in GRAPHS}


@pytest.fixture(scope="session")
def quantised_products() -> Callable[[onnx.GraphProto], int]:
    """How many layers a graph computes in integers: several may be one node, named for all, and one several nodes."""

    def count(graph: onnx.GraphProto) -> int:
        nodes = [node for node in graph.node if node.op_type in ("MatMulInteger", "MatMulNBits")]
        names = [re.sub(r"\.\d+\.sums$", "", n.name) for n in nodes if not n.input[1].startswith("ones.")]
        return sum(1 + name.count("+") for name in set(names))

    return count


@pytest.fixture(scope="session")
def calibrated(shared: Any) -> Calibrated:
    """`calibrated(name, source, *arguments)`: a folder with `bundle` and `report.json`, made once for all processes.

    Few questions decide little, so the budget is wide; tests look at what was found.
    """

    def get(name: str, source: Path, *arguments: str) -> Path:
        def make(folder: Path) -> None:
            folder.mkdir()
            options = ["--samples", "16", "--max-accuracy-drop", "0.2", "--min-kept-overlap", "0.8"]
            files = ["-o", str(folder / "bundle"), "--report", str(folder / "report.json")]
            result = CliRunner().invoke(app, ["precision", str(source), *files, *options, *arguments])
            assert result.exit_code == 0, result.output

        return Path(shared(f"precision-{name}", make))

    return get


@pytest.fixture(scope="session")
def pairs_bundle(shared: Any) -> Path:
    """The small BLIP for two pictures, which is trained."""
    return Path(shared("pairs-bundle", lambda folder: export_bundle(str(PAIRS_CHECKPOINT), folder)))
