"""Bundles that memory hardly holds: their weights stay in their files, and what comes of them is the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from catp.calibration.data import open_data
from catp.calibration.precision import memory
from catp.calibration.precision.comparison import ask
from catp.calibration.precision.memory import is_tight
from catp.runtime.bundle.folder import open_bundle
from catp.runtime.providers.onnx_runtime import OrtEngine, OrtProvider

WIDTH = 4096


def anonymous() -> int:
    """Bytes of memory that are this process's own, and no file's."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))


def product(folder: Path) -> bytes:
    """A product with a matrix of 64 MiB, which lies in a file beside the graph."""
    weight = np.random.default_rng(0).standard_normal((WIDTH, WIDTH), np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", WIDTH])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, folder / "product.onnx", save_as_external_data=True, location="product.data")
    return (folder / "product.onnx").read_bytes()


def test_mapped_weights_take_no_memory_of_the_processs_own(tmp_path: Path) -> None:
    """Otherwise ONNX Runtime packs them into such memory, and keeps that."""
    model, x = product(tmp_path), np.random.default_rng(1).standard_normal((3, WIDTH), np.float32)
    engines: list[OrtEngine] = []
    gained, found = [], []
    for mapped in (True, False):
        before = anonymous()
        engines.append(OrtProvider("cpu", mapped=mapped).engine_in_memory(model, tmp_path))
        found.append(engines[-1].bind({"x": x}).run()["y"].numpy().copy())
        gained.append(anonymous() - before)
    assert gained[0] < 16 << 20 and gained[1] >= 4 * WIDTH * WIDTH
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4, atol=1e-3)


def test_weights_are_mapped_where_they_take_more_than_half(demo_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = open_bundle(demo_bundle)
    weights = sum(graph.bytes for graph in bundle.manifest.graphs.values())
    for free, tight in ((2 * weights, False), (2 * weights - 2, True), (None, False)):
        monkeypatch.setattr(memory, "available_memory", lambda free=free: free)
        assert is_tight(bundle) == tight


def test_answers_are_the_same(demo_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list(open_data("demo").subset(6, None, 3))
    roomy = ask(demo_bundle, asked, "exact match", 0, 4, lambda done: None)
    opened: list[bool] = []
    make = OrtProvider.__init__

    def recorded(self: OrtProvider, name: str, *given: object, mapped: bool = False) -> None:
        opened.append(mapped)
        make(self, name, *given, mapped=mapped)  # type: ignore[arg-type]

    monkeypatch.setattr(OrtProvider, "__init__", recorded)
    monkeypatch.setattr(memory, "available_memory", lambda: 1)
    tight = ask(demo_bundle, asked, "exact match", 0, 4, lambda done: None)
    assert opened == [True]
    assert (tight.accuracy == roomy.accuracy).all() and (tight.kept == roomy.kept).all()
