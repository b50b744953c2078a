"""Tracing without weights: a module's parameters have shapes and types while it is traced, and no content.

The graphs' initializers then refer to the stored weights, each of which is read, cast and dropped as it is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import TorchTensor, from_torch_dtype
from torch._subclasses.fake_tensor import FakeTensorMode

from catp.export.checkpoints.residency import give_back


class Stored:
    """The weights that stand behind parameters without content.

    Attributes:
        not_held: by name, the types that could not hold some of a weight's numbers: they were written as infinite.
    """

    def __init__(self) -> None:
        self.not_held: dict[str, torch.dtype] = {}
        self._tensors: dict[int, tuple[torch.nn.Parameter, torch.Tensor]] = {}

    def add(self, stand_in: torch.nn.Parameter, stored: torch.Tensor) -> None:
        self._tensors[id(stand_in)] = (stand_in, stored)  # it's kept, so that its id stays its own

    def clear(self) -> None:
        """Forget them: what was traced may live on in PyTorch's caches, and must not keep a checkpoint in memory."""
        self._tensors.clear()

    def attach(self, model: ir.Model, module: torch.nn.Module) -> None:
        """Let the initializers of `model`, which `module` was traced to, read the weights when they are asked."""
        for name, parameter in module.named_parameters(remove_duplicate=False):
            value = model.graph.initializers.get(name)
            if value is not None and id(parameter) in self._tensors:
                value.const_value = self._lazy(name, parameter)
                self._fold_transpose(model, value, parameter)

    def _lazy(
        self, name: str, parameter: torch.nn.Parameter, order: Sequence[int] | None = None, tensor: str | None = None
    ) -> ir.LazyTensor:
        """Stored weights in the type that `parameter` has now, read anew whenever they are looked at.

        Args:
            order: of the dimensions, where they are permuted.
            tensor: what it is called in the graph, where not as in the module.
        """
        key, dtype = id(parameter), parameter.dtype
        shape = parameter.shape if order is None else [parameter.shape[i] for i in order]

        def read() -> ir.TensorProtocol:
            stored = self._tensors[key][1]
            ordered = stored if order is None else stored.permute(*order)
            content = ordered.to(dtype, memory_format=torch.contiguous_format, copy=True)
            give_back(stored)
            if dtype != torch.float32 and not content.isfinite().all():
                self.not_held[name] = dtype
            return TorchTensor(content, name=tensor or name)

        return ir.LazyTensor(read, dtype=from_torch_dtype(dtype), shape=ir.Shape(shape), name=tensor or name)

    def _fold_transpose(self, model: ir.Model, value: ir.Value, parameter: torch.nn.Parameter) -> None:
        """Weights that are only read transposed are stored so.

        The optimizer would do the same, and keep every weight that it transposes in memory until the graph is written.
        """
        consumers = value.consumers()
        if len(consumers) != 1 or consumers[0].op_type != "Transpose" or value.is_graph_output():
            return
        node = consumers[0]
        result = node.outputs[0]
        tensor = self._lazy(str(value.name), parameter, node.attributes["perm"].as_ints(), result.name)
        folded = ir.Value(name=result.name, shape=result.shape, type=result.type, const_value=tensor)
        ir.convenience.replace_all_uses_with(result, folded)
        model.graph.remove(node, safe=True)
        model.graph.initializers.pop(str(value.name))
        model.graph.register_initializer(folded)


@contextmanager
def without_weights(model: torch.nn.Module, set_dtypes: Callable[[], object] = lambda: None) -> Iterator[Stored]:
    """While it lasts, every parameter of `model` is a float32 stand-in without content. Tied parameters share one.

    A module that computes with them yields stand-ins too: what a graph is to contain is computed in `forward`.

    Args:
        set_dtypes: called once to give parameters of the model other types, which costs nothing then.
    """
    # Inputs and buffers are what they are: they are small, and buffers become part of the graph.
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    stored = Stored()
    originals = [
        (module, name, parameter)
        for module in model.modules()
        for name, parameter in module._parameters.items()
        if parameter is not None
    ]
    typed = {id(p): torch.nn.Parameter(torch.empty(p.shape, device="meta"), False) for _, _, p in originals}
    try:
        for module, name, parameter in originals:
            module._parameters[name] = typed[id(parameter)]
        set_dtypes()
        with fake:
            stand_ins = {
                key: torch.nn.Parameter(torch.empty(p.shape, dtype=p.dtype), False) for key, p in typed.items()
            }
        for module, name, parameter in originals:
            module._parameters[name] = stand_ins[id(parameter)]
            stored.add(stand_ins[id(parameter)], parameter.data)
        yield stored
    finally:
        for module, name, parameter in originals:
            module._parameters[name] = parameter
        stored.clear()
