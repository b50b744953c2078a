"""The Q-Former graph without its vote, made from the bundle's own file, so that everything else is the same."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass


def without_vote(path: Path) -> bytes:
    """The graph that projects every query embedding, and neither scores nor sorts them.

    Attention whose probabilities the vote reads stays as it was exported, spelled out. Weights that lie beside the file
    are named in the result, not copied.

    Args:
        path: a bundle's qformer_voting.onnx.

    Raises:
        ValueError: its kept_embeds are not chosen from all by kept_indices.
    """
    model = ir.load(path)
    graph = model.graph
    outputs = {value.name: value for value in graph.outputs}
    choice = _choice(outputs["kept_embeds"], outputs["kept_indices"])
    everything = choice.inputs[0]
    assert everything is not None
    choice.outputs[0].replace_all_uses_with(everything)
    for value in outputs.values():
        if value.name != "kept_embeds":
            graph.outputs.remove(value)
    outputs["kept_embeds"].shape = None  # as many as there are queries, no longer num_kept
    RemoveUnusedNodesPass()(model)
    for value in [value for value in graph.inputs if not value.uses()]:
        graph.inputs.remove(value)
    return ir.serde.serialize_model(model).SerializeToString()


def _choice(embeds: ir.Value, indices: ir.Value) -> ir.Node:
    """The operator nearest to `embeds` that picks rows by `indices`."""
    waiting = deque([embeds])
    seen = set()
    while waiting:
        node = waiting.popleft().producer()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.op_type == "GatherElements" and node.inputs[1] is not None and _follows(node.inputs[1], indices):
            return node
        waiting.extend(value for value in node.inputs if value is not None)
    raise ValueError("kept_embeds are not chosen by kept_indices: this is no Q-Former graph that catp-export writes")


def _follows(value: ir.Value, source: ir.Value) -> bool:
    """Whether `value` is `source`, only reshaped or cast."""
    while value is not source:
        node = value.producer()
        if node is None or node.inputs[0] is None:
            return False
        value = node.inputs[0]
    return True
