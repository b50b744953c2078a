"""A graph's ONNX file as a TensorRT network, with nothing dropped on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from catp.export.engines.targets import Builder
from catp.runtime.bundle.manifest import GraphSpec, TensorSpec
from catp.runtime.bundle.plans import fixed_numbers
from catp.runtime.errors import CatpError

_DROPPED = ("unused input", "ignor", "not supported", "unsupported")
"""What TensorRT's parser says, in a warning, when it leaves out something that a graph says."""


@dataclass(frozen=True)
class Network:
    """A parsed network; builder, parser and logger belong to it, and TensorRT wants them all alive."""

    builder: Any
    definition: Any
    parser: Any
    logger: Any

    @property
    def complaints(self) -> str:
        """TensorRT's warnings and errors."""
        return "; ".join(dict.fromkeys(self.logger.messages))

    def tensors(self, dimensions: Mapping[str, tuple[int | str, ...]]) -> tuple[tuple[TensorSpec, ...], ...]:
        """Inputs and outputs as the network has them; free dimensions get the names of `dimensions`.

        Args:
            dimensions: by tensor, its shape in the manifest.
        """
        definition = self.definition
        groups = (
            [definition.get_input(index) for index in range(definition.num_inputs)],
            [definition.get_output(index) for index in range(definition.num_outputs)],
        )
        return tuple(
            tuple(_tensor_spec(tensor, dimensions.get(tensor.name, tuple(tensor.shape))) for tensor in group)
            for group in groups
        )

    def read_tensors(self) -> set[str]:
        """Names of the tensors that some layer reads."""
        definition = self.definition
        layers = (definition.get_layer(index) for index in range(definition.num_layers))
        inputs = (layer.get_input(index) for layer in layers for index in range(layer.num_inputs))
        return {tensor.name for tensor in inputs if tensor is not None}

    def layers(self) -> dict[str, int]:
        """How many layers of which type."""
        definition = self.definition
        types = (definition.get_layer(index).type for index in range(definition.num_layers))
        return dict(sorted(Counter(layer_type.name for layer_type in types).items()))


def parse(target: Builder, model: onnx.ModelProto, path: Path, graph: GraphSpec, fixed: Mapping[str, int]) -> Network:
    """Parse a model whose external weights lie beside `path`.

    Raises:
        CatpError: the parser refused something or left something out; the message has its words.
    """
    from polygraphy.backend.trt import set_decomposable_attentions

    trt = target.trt
    # TensorRT 10 has a flag for it; later ones and TensorRT-RTX type strongly anyway, and some lost the flag.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    logger = _collector(trt)
    builder = trt.Builder(logger)
    definition = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(definition, logger)
    name = path.stem
    # Bytes, because dimensions were fixed in memory; the path tells the parser where the weights are.
    if not parser.parse(model.SerializeToString(), str(path)):
        errors = "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors))
        raise CatpError(f"{name}: {target.name} {target.version} can't parse it: {errors}")
    dropped = [message for message in logger.messages if any(word in message.lower() for word in _DROPPED)]
    if dropped:
        raise CatpError(f"{name}: {target.name} {target.version} would leave something out: {'; '.join(dropped)}")
    network = Network(builder, definition, parser, logger)
    _compare(name, network, graph, fixed)
    # No device has a fused float32 attention; where one has a fused half-precision one, it is still used.
    set_decomposable_attentions((builder, definition, parser))
    return network


def _compare(name: str, network: Network, graph: GraphSpec, fixed: Mapping[str, int]) -> None:
    """Every tensor of the graph is one of the network, of the same dtype and shape: nothing was dropped in silence."""
    listed = {tensor.name: tensor.shape for tensor in (*graph.inputs, *graph.outputs)}
    expected = tuple(
        tuple(
            TensorSpec(
                name=t.name, dtype=t.dtype, shape=tuple(fixed.get(d, d) if isinstance(d, str) else d for d in t.shape)
            )
            for t in group
            if not fixed_numbers(t.name, fixed)
        )
        for group in (graph.inputs, graph.outputs)
    )
    found = network.tensors(listed)
    for actual, wanted in zip(found, expected):
        difference = set(wanted) ^ set(actual)
        if difference:
            names = ", ".join(sorted({tensor.name for tensor in difference}))
            raise CatpError(f"{name}: the parsed network differs from the graph in {names}")
    unread = {tensor.name for tensor in found[0]} - network.read_tensors()
    if unread:
        # So it goes with an operator's input that TensorRT does not know: the tensor stays, its effect is gone.
        raise CatpError(f"{name}: the parsed network does not use {', '.join(sorted(unread))}: TensorRT dropped it")


def _tensor_spec(tensor: Any, names: tuple[int | str, ...]) -> TensorSpec:
    shape = tuple(int(extent) if extent >= 0 else name for extent, name in zip(tensor.shape, names, strict=True))
    return TensorSpec(name=tensor.name, dtype=_dtype(tensor.dtype), shape=shape)


def _dtype(dtype: Any) -> str:
    """As numpy names it."""
    names = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}
    return names.get(dtype.name, dtype.name.lower())


def _collector(trt: Any) -> Any:
    """A logger that keeps warnings instead of printing them."""

    class Collector(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR, trt.ILogger.WARNING):
                self.messages.append(message)

    return Collector()
