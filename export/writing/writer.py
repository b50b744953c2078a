"""Graphs to files: traces a module, writes ONNX with external weights, checks it, describes it."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Mapping
from pathlib import Path

import onnx
import onnx_ir as ir
import torch

from catp.export.checkpoints.weightless import Stored
from catp.export.graphs import Graph, operators
from catp.export.writing.external_data import save_model
from catp.export.writing.float32_islands import float32_islands
from catp.runtime.bundle.folder import file_spec
from catp.runtime.bundle.graph_shape import refusal
from catp.runtime.bundle.manifest import GraphSpec, Precision, TensorSpec
from catp.runtime.errors import CatpError

_MACHINE = "pkg.torch.onnx.stack_trace"
"""Metadata of nodes: names files of the machine that exported."""


def write_graph(graph: Graph, folder: Path, precision: Precision, stored: Stored | None = None) -> GraphSpec:
    """Write `<name>.onnx` and `<name>.onnx_data` into `folder`.

    Weights are streamed to the file one by one, from the module's own tensors, or from those that stand behind them.

    Args:
        stored: the weights of a module that has none (`without_weights`).

    Raises:
        onnx.checker.ValidationError: the result is not valid ONNX.
        CatpError: it has an operator that no bundle may have.
    """
    path = folder / f"{graph.name}.onnx"
    with operators.onnx_attention(graph.module), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's own deprecations; what matters is checked below
        for name in ("torch.onnx", "onnxscript", "onnx_ir"):
            logging.getLogger(name).setLevel(logging.ERROR)
        program = torch.onnx.export(
            graph.module.eval(),
            graph.example,
            dynamo=True,
            verbose=False,
            opset_version=operators.OPSET,
            input_names=graph.input_names,
            output_names=graph.output_names,
            dynamic_shapes=graph.dynamic_shapes,
            optimize=False,
        )
        assert program is not None
        if stored is not None:
            stored.attach(program.model, graph.module)
        program.optimize()  # with the weights at hand: it computes what depends on small ones alone
    model = program.model
    for node in model.graph:
        node.metadata_props.pop(_MACHINE, None)
    _rename_dimensions(model, graph.dimension_names)
    data = save_model(model, path)
    onnx.checker.check_model(path, full_check=True)
    if reason := refusal(path.read_bytes(), data.name.encode()):
        raise CatpError(f"{path.name} {reason}: a runtime would refuse the bundle; nothing was published")
    return GraphSpec(
        file=file_spec(folder, path),
        external_data=file_spec(folder, data) if data.exists() else None,
        precision=precision,
        float32_islands=() if precision == "fp32" else float32_islands(model),
        inputs=tuple(_tensor_spec(value) for value in model.graph.inputs),
        outputs=tuple(_tensor_spec(value) for value in model.graph.outputs),
        operators=sum(1 for _ in model.graph),
        parameters=sum(_elements(value) for value in model.graph.initializers.values()),
    )


def _rename_dimensions(model: ir.Model, names: Mapping[str, str]) -> None:
    values = [*model.graph.inputs, *(output for node in model.graph for output in node.outputs)]
    for value in values:
        if value.shape is not None:
            value.shape = ir.Shape([names.get(str(d), d) if not isinstance(d, int) else d for d in value.shape])


def _tensor_spec(value: ir.Value) -> TensorSpec:
    assert value.name is not None and value.dtype is not None and value.shape is not None
    shape = tuple(d if isinstance(d, int) else str(d.value) for d in value.shape)
    return TensorSpec(name=value.name, dtype=value.dtype.numpy().name, shape=shape)


def _elements(value: ir.Value) -> int:
    tensor = value.const_value
    return 0 if tensor is None or not tensor.dtype.is_floating_point() else math.prod(tensor.shape.numpy())
