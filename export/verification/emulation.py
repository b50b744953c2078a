"""bfloat16 graphs emulated in float32, for ONNX Runtime's CPU provider, which computes no bfloat16.

Every operator computes in float32, and what is a bfloat16 tensor in the bundle is rounded to bfloat16 after it.
Weights stay where they are, in bfloat16, and are cast up. What a kernel rounds inside an operator is not emulated:
of Attention, only the result is rounded. Nothing here executes the bfloat16 graphs themselves.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from catp.runtime.bundle.folder import Bundle, file_spec
from catp.runtime.bundle.manifest import GraphSpec, TensorSpec


@contextmanager
def emulated(bundle: Bundle) -> Iterator[Bundle]:
    """A float32 bundle that computes what a bfloat16 one should, while it lasts.

    Its graphs lie beside the bundle's own, because ONNX Runtime reads no weights from another folder.

    Raises:
        onnx.checker.ValidationError: a graph has bfloat16 tensors that the emulation does not know of.
    """
    manifest = bundle.manifest
    paths = {name: bundle.path / f".{name}.emulated-{os.getpid()}" for name in manifest.graphs}
    try:
        graphs = {name: _write_emulated(bundle, spec, paths[name]) for name, spec in manifest.graphs.items()}
        yield Bundle(bundle.path, manifest.model_copy(update={"precision": "fp32", "graphs": graphs}))
    finally:
        for path in paths.values():
            path.unlink(missing_ok=True)


def _write_emulated(bundle: Bundle, spec: GraphSpec, path: Path) -> GraphSpec:
    """Write the emulated graph of `spec`; what a manifest says of it."""
    model = onnx.load(bundle.file(spec.file), load_external_data=False)
    emulate(model)
    onnx.save(model, path)
    onnx.checker.check_model(path, full_check=True)
    return spec.model_copy(
        update={
            "file": file_spec(bundle.path, path),
            "precision": "fp32",
            "inputs": tuple(map(_in_float32, spec.inputs)),
            "outputs": tuple(map(_in_float32, spec.outputs)),
            "operators": len(model.graph.node),
        }
    )


def _in_float32(tensor: TensorSpec) -> TensorSpec:
    return tensor.model_copy(update={"dtype": "float32"}) if tensor.dtype == "bfloat16" else tensor


def emulate(model: onnx.ModelProto) -> None:
    """Rewrite a model in place: its bfloat16 inputs, outputs and intermediate tensors become float32, rounded."""
    graph = model.graph
    inferred = onnx.shape_inference.infer_shapes(model).graph.value_info
    narrow = {
        value.name
        for value in (*graph.input, *inferred, *graph.output)
        if value.type.tensor_type.elem_type == TensorProto.BFLOAT16
    }
    nodes = [*_widened_weights(graph)]
    rounded = {value.name: f"{value.name}.rounded" for value in graph.input if value.name in narrow}
    for name, target in rounded.items():
        nodes += _rounding(name, target)
    for node in graph.node:
        _compute_in_float32(node, narrow)
        node.input[:] = [rounded.get(name, name) for name in node.input]
        results = [name for name in node.output if name in narrow]
        node.output[:] = [f"{name}.exact" if name in narrow else name for name in node.output]
        nodes.append(node)
        # Once too often after an operator that only moves values, which changes none of them.
        for name in results:
            nodes += _rounding(f"{name}.exact", name)
    for value in (*graph.input, *graph.output):
        if value.name in narrow:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    del graph.value_info[:]  # of types that are no more
    del graph.node[:]
    graph.node.extend(nodes)


def _widened_weights(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Rename the bfloat16 weights; the casts that make float32 tensors of their old names."""
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.BFLOAT16:
            name, tensor.name = tensor.name, f"{tensor.name}.bf16"
            yield _cast(tensor.name, name, TensorProto.FLOAT)


def _rounding(source: str, target: str) -> list[onnx.NodeProto]:
    """`target`: `source`, rounded to bfloat16, in float32."""
    return [_cast(source, f"{target}.bf16", TensorProto.BFLOAT16), _cast(f"{target}.bf16", target, TensorProto.FLOAT)]


def _cast(source: str, target: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], to=to)


def _compute_in_float32(node: onnx.NodeProto, narrow: set[str]) -> None:
    """A cast to bfloat16 becomes one to float32; other operators have the type of their inputs."""
    if node.op_type == "Cast" and node.output[0] in narrow:
        next(attribute for attribute in node.attribute if attribute.name == "to").i = TensorProto.FLOAT
