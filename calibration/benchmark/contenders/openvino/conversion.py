"""Modules of PyTorch to OpenVINO models; those of language models keep their own cache.

The cache is made a state as optimum-intel does it (`optimum/exporters/openvino/stateful.py`): OpenVINO's own
transformation turns each past/present pair into a variable, which starts empty. `beam_idx` says which row of the cache
each row goes on from. Greedy search has no use for it, but only with it does the CPU plugin recognise the pattern that
it runs as one operator, attention with the cache in place.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import DynamicLayer

from catp.runtime.errors import UsageError
from catp.runtime.providers.openvino.library import import_openvino
from catp.runtime.providers.openvino.signal_stack import signal_stack_kept


class GrowingLayer(DynamicLayer):
    """One layer's cache that new keys and values are appended to, starting with those given."""

    keys: Any
    values: Any

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.is_initialized = True  # else the first update would drop them


def growing(past: Sequence[torch.Tensor]) -> list[GrowingLayer]:
    """Layers that start with a key and a value [B,H,T,d] of each in turn."""
    return [GrowingLayer(keys, values) for keys, values in zip(past[::2], past[1::2])]


def grown(layers: Sequence[GrowingLayer]) -> tuple[torch.Tensor, ...]:
    """A key and a value of each layer in turn, as they are now."""
    return tuple(states for layer in layers for states in (layer.keys, layer.values))


def convert(module: torch.nn.Module, example: Any) -> Any:
    """The openvino.Model of a module, traced with these inputs; raises UsageError where it can't be expressed."""
    openvino = import_openvino()
    # What a trace holds constant is warned of: none of it changes here.
    with signal_stack_kept(), warnings.catch_warnings(action="ignore"):
        try:
            return openvino.convert_model(module.eval(), example_input=example)
        except openvino.frontend.OpConversionFailure as error:
            reason = [line for line in str(error).splitlines() if line.startswith(("--", "Conversion is failed"))]
            raise UsageError(
                f"--against openvino: OpenVINO {openvino.__version__} can't convert this checkpoint "
                f"({(reason or ['it gave no reason'])[-1].lstrip('- ')}); leave this contender out"
            ) from None


def convert_step(
    module: torch.nn.Module,
    inputs: Mapping[str, tuple[torch.Tensor, Sequence[int]]],
    past: Sequence[torch.Tensor],
    cross: Sequence[torch.Tensor] = (),
) -> Any:
    """The openvino.Model of a step of a language model, with its cache as a state.

    Args:
        module: called with `inputs`, then with `past`, and with `cross` where there is any; it returns logits and the
            new past.
        inputs: examples by name, and their shapes, in which -1 is any size; the first one's rows are the cache's.
        past: examples of a key and a value of each layer in turn, [B,H,T,d].
        cross: the same of what cross-attention reads, which becomes the inputs `cross.0`, `cross.1` and so on.

    Raises:
        UsageError: OpenVINO can't express a part of it.
    """
    examples = (*(example for example, _ in inputs.values()), tuple(past), *((tuple(cross),) if cross else ()))
    converted = convert(module, examples)
    pairs = {f"past.{i}": f"present.{i}" for i in range(len(past))}
    caches = [[-1, states.shape[1], -1, states.shape[3]] for states in (*past, *cross)]
    set_shapes(converted, dict(enumerate([*(list(shape) for _, shape in inputs.values()), *caches])))
    names = *inputs, *pairs, *(f"cross.{i}" for i in range(len(cross)))
    for port, name in zip(converted.inputs, names, strict=True):
        port.get_tensor().set_names({name})
    for port, name in zip(converted.outputs, ("logits", *pairs.values()), strict=True):
        port.get_tensor().set_names({name})
    _make_stateful(converted, pairs, next(iter(inputs)))
    return converted


def set_shapes(converted: Any, shapes: Mapping[int, list[int]]) -> None:
    """Set the shapes of inputs by number; -1 is any size."""
    openvino = import_openvino()
    for number, shape in shapes.items():
        converted.inputs[number].get_node().set_partial_shape(openvino.PartialShape(shape))
    converted.validate_nodes_and_infer_types()


def _make_stateful(converted: Any, pairs: Mapping[str, str], rows: str) -> None:
    """
    Args:
        pairs: name of the input that takes a part of the cache, and of the output that gives it back.
        rows: name of the input that has as many rows as the cache.
    """
    openvino = import_openvino()
    from openvino._offline_transformations import apply_make_stateful_transformation

    op = openvino.opset13
    beam_idx = op.parameter([-1], np.int32, name="beam_idx")
    beam_idx.output(0).get_tensor().add_names({"beam_idx"})
    converted.add_parameters([beam_idx])
    for name in pairs:
        past = converted.input(name)
        readers = past.get_target_inputs()
        chosen = op.gather(past, beam_idx, op.constant(0))
        for reader in readers:
            reader.replace_source_output(chosen.output(0))
    converted.validate_nodes_and_infer_types()
    apply_make_stateful_transformation(converted, dict(pairs))
    # At first, and after every reset, there are no tokens in it, of as many rows as are asked.
    batch = op.gather(op.shape_of(converted.input(rows), output_type="i64"), op.constant([0]), op.constant(0))
    for read in [node for node in converted.get_ops() if node.get_type_name() == "ReadValue"]:
        _, heads, _, width = read.get_output_partial_shape(0)
        rest = op.constant(np.array([heads.get_length(), 0, width.get_length()], np.int64))
        read.set_arguments([op.broadcast(op.constant(np.float32(0)), op.concat([batch, rest], 0))])
    converted.validate_nodes_and_infer_types()
