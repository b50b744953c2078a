"""A BLIP-2 checkpoint in PyTorch to three OpenVINO models; the language model's keeps its own cache.

    vision          pixel_values float32 [B,3,H,W] -> image_embeds [B,I,Dv]
    qformer         image_embeds -> query_embeds [B,N,Dl], projected for the language model
    language_model  input_ids int64 [B,S], prefix_embeds float32 [B,K,Dl], beam_idx int32 [B]
                      -> logits [B,V] of the last token; keys and values stay in the infer request

The cache is made a state as optimum-intel does it (`optimum/exporters/openvino/stateful.py`): OpenVINO's own
transformation turns each past/present pair into a variable, which starts empty. `beam_idx` says which row of the cache
each row goes on from. Greedy search has no use for it, but only with it does the CPU plugin recognise the pattern that
it runs as one operator, attention with the cache in place.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import Cache, DynamicLayer

from catp.runtime.errors import UsageError
from catp.runtime.providers.openvino.library import import_openvino
from catp.runtime.providers.openvino.signal_stack import signal_stack_kept


@dataclass(frozen=True)
class Converted:
    """Three of openvino.Model, and what PyTorch computes between them for the pictures they were converted with."""

    vision: Any
    qformer: Any
    language_model: Any
    image_embeds: list[np.ndarray]  # [1,I,Dv] each
    query_embeds: list[np.ndarray]  # [1,N,Dl] each


class VisionTower(torch.nn.Module):
    """The ViT with its layer norm."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.vision_model = model.vision_model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.vision_model(pixel_values).last_hidden_state


class ProjectedQueries(torch.nn.Module):
    """The Q-Former and the projection to the language model's width."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.query_tokens, self.qformer, self.projection = model.query_tokens, model.qformer, model.language_projection

    def forward(self, image_embeds: torch.Tensor) -> torch.Tensor:
        queries = self.query_tokens.expand(image_embeds.shape[0], -1, -1)
        return self.projection(self.qformer(query_embeds=queries, encoder_hidden_states=image_embeds).last_hidden_state)


class OpenVinoStep(torch.nn.Module):
    """A prefill or decode step: K prefix tokens and S text tokens after all those in the cache."""

    def __init__(self, language_model: Any) -> None:
        super().__init__()
        self.embedding = language_model.get_input_embeddings()
        self.decoder = language_model.base_model
        self.head = language_model.get_output_embeddings()

    def forward(
        self, input_ids: torch.Tensor, prefix_embeds: torch.Tensor, past: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, ...]:
        """`past` is a key and a value of each layer in turn, [B,H,T,d]; so is what follows the logits."""
        embeds = torch.cat([prefix_embeds, self.embedding(input_ids)], 1)
        seen = past[0].shape[2]
        slots = torch.arange(seen + embeds.shape[1])
        positions = slots[seen:]
        layers = [GrowingLayer(keys, values) for keys, values in zip(past[::2], past[1::2])]
        hidden = self.decoder(
            inputs_embeds=embeds,
            attention_mask=(slots[None] <= positions[:, None])[None, None],  # bool [1,1,K+S,T+K+S]
            position_ids=positions[None].expand(embeds.shape[0], -1),
            cache=Cache(layers=[*layers]),
            use_cache=True,
        ).last_hidden_state
        # As in ours, the head sees one token of each row.
        return self.head(hidden[:, -1]), *(states for layer in layers for states in (layer.keys, layer.values))


class GrowingLayer(DynamicLayer):
    """One layer's cache that new keys and values are appended to, starting with those given."""

    keys: Any
    values: Any

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.is_initialized = True  # else the first update would drop them


@torch.no_grad()
def convert_blip2(model: Any, pixel_values: Sequence[np.ndarray]) -> Converted:
    """Convert the parts of a Blip2ForConditionalGeneration with a decoder-only language model, in float32.

    Args:
        model: in evaluation mode; its weights are shared with the result, not copied.
        pixel_values: [1,3,H,W] of two pictures at least.

    Raises:
        UsageError: OpenVINO can't express a part of it.
    """
    model.set_attn_implementation("sdpa")
    tower, queries = VisionTower(model), ProjectedQueries(model)
    image_embeds = [tower(torch.from_numpy(pixels)) for pixels in pixel_values]
    query_embeds = [queries(embeds) for embeds in image_embeds]
    return Converted(
        vision=_convert_encoder(tower, torch.from_numpy(np.concatenate(pixel_values[:2]))),
        qformer=_convert_encoder(queries, torch.cat(image_embeds[:2])),
        language_model=_convert_language_model(model.language_model, torch.cat(query_embeds[:2])),
        image_embeds=[embeds.numpy() for embeds in image_embeds],
        query_embeds=[embeds.numpy() for embeds in query_embeds],
    )


def _convert_encoder(module: torch.nn.Module, example: torch.Tensor) -> Any:
    converted = convert(module, example)
    set_shapes(converted, {0: [-1, *example.shape[1:]]})
    return converted


def _convert_language_model(language_model: Any, prefix: torch.Tensor) -> Any:
    input_ids = torch.ones(len(prefix), 3, dtype=torch.long)
    cache = language_model(input_ids=input_ids, use_cache=True).cache
    past = tuple(states for layer in cache.layers for states in (layer.keys, layer.values))
    converted = convert(OpenVinoStep(language_model), (input_ids, prefix, past))
    shapes = [[-1, -1], [-1, -1, prefix.shape[2]], *([-1, states.shape[1], -1, states.shape[3]] for states in past)]
    set_shapes(converted, dict(enumerate(shapes)))
    pairs = {f"past.{i}": f"present.{i}" for i in range(len(past))}
    for port, name in zip(converted.inputs, ("input_ids", "prefix_embeds", *pairs)):
        port.get_tensor().set_names({name})
    for port, name in zip(converted.outputs, ("logits", *pairs.values())):
        port.get_tensor().set_names({name})
    _make_stateful(converted, pairs)
    return converted


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


def set_shapes(converted: Any, shapes: Mapping[int, list[int]]) -> None:
    """Set the shapes of inputs by number; -1 is any size."""
    openvino = import_openvino()
    for number, shape in shapes.items():
        converted.inputs[number].get_node().set_partial_shape(openvino.PartialShape(shape))
    converted.validate_nodes_and_infer_types()


def _make_stateful(converted: Any, pairs: Mapping[str, str]) -> None:
    """Args: pairs: name of the input that takes a part of the cache, and of the output that gives it back."""
    openvino = import_openvino()
    from openvino._offline_transformations import apply_make_stateful_transformation

    op = openvino.opset13
    beam_idx = op.parameter([-1], np.int32, name="beam_idx")
    beam_idx.output(0).get_tensor().add_names({"beam_idx"})
    converted.add_parameters([beam_idx])
    for name in pairs:
        past = converted.input(name)
        readers = past.get_target_inputs()
        rows = op.gather(past, beam_idx, op.constant(0))
        for reader in readers:
            reader.replace_source_output(rows.output(0))
    converted.validate_nodes_and_infer_types()
    apply_make_stateful_transformation(converted, dict(pairs))
    # At first, and after every reset, there are no tokens in it, of as many rows as are asked.
    batch = op.gather(op.shape_of(converted.input("input_ids"), output_type="i64"), op.constant([0]), op.constant(0))
    for read in [node for node in converted.get_ops() if node.get_type_name() == "ReadValue"]:
        _, heads, _, width = read.get_output_partial_shape(0)
        rest = op.constant(np.array([heads.get_length(), 0, width.get_length()], np.int64))
        read.set_arguments([op.broadcast(op.constant(np.float32(0)), op.concat([batch, rest], 0))])
    converted.validate_nodes_and_infer_types()
