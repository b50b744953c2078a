"""Inputs and outputs by which the runtime drives each graph; a manifest whose graphs have others is refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from catp.runtime.bundle.manifest import GraphSpec, TensorSpec

FREE, FIXED, EITHER = "?", "n", "."
"""Letters for a dimension: named, or a number, or one of them."""

Tensors = Mapping[str, tuple[str, str]]
"""By name the dtype, "float" for any of them, and a letter for each dimension. A name that ends in a dot stands for
all that begin so."""

_IMAGE: Tensors = {"image_embeds": ("float", "?.n")}
_TEXT: Tensors = {"text_ids": ("int64", "??"), "text_mask": ("int64", "??")}
_PREFIX: Tensors = {
    "input_ids": ("int64", "??"),
    "prefix_embeds": ("float", "??n"),
    "prefix_positions": ("int64", "??"),
    "position_start": ("int64", "?"),
}
_PAST: Tensors = {"past_key_values.": ("float", "?n?n")}
_CROSS: Tensors = {"cross_key_values.": ("float", "?n?n")}
_STEP: Tensors = {
    "input_ids": ("int64", "?n"),
    "write_indices": ("int64", "?"),
    "encoded_lengths": ("int64", "?"),
    **_CROSS,
    **_PAST,
}
_CAPTION: Tensors = {**_STEP, "input_ids": ("int64", "??"), "last_indices": ("int64", "?")}
_CHOICE: Tensors = {"logits": ("float", "?n"), "next_token": ("int64", "?"), "present.": ("float", "?n?n")}

INPUTS: Final[dict[str, Tensors]] = {
    "vision_encoder": {"pixel_values": ("float32", "?nnn")},
    "qformer_voting": {**_IMAGE, "num_kept": ("int64", "n")},
    "language_model": {**_PREFIX, "write_indices": ("int64", "?"), "last_indices": ("int64", "?"), **_PAST},
    "text_encoder": {**_PREFIX, "lengths": ("int64", "?")},
    "text_decoder": _STEP,
    "question_encoder": {"input_ids": ("int64", "??"), "image_embeds": ("float", "??n"), "lengths": ("int64", "?")},
    "answer_decoder": _STEP,
    "image_keys": {"image_embeds": ("float", "??n")},
    "caption_decoder": _CAPTION,
    "statement_encoder": {
        **_TEXT,
        "first_image_embeds": ("float", "??n"),
        "second_image_embeds": ("float", "??n"),
    },
    "text_embedding": _TEXT,
    "image_embedding": _IMAGE,
    "image_text_matching": {**_IMAGE, **_TEXT},
}
"""All inputs of each graph, but for `OPTIONAL`."""

OPTIONAL: Final[dict[str, Tensors]] = {
    "question_encoder": {"encoder_temperature": ("float32", "n")},
    "vision_encoder": {"kept_tokens": ("int64", "n"), "encoder_temperature": ("float32", "n")},
    "qformer_voting": {
        "image_weights": ("float", "?."),
        "instruction_ids": ("int64", "??"),
        "instruction_mask": ("int64", "??"),
    },
    "image_text_matching": {"kept_indices": ("int64", "??")},
}

OUTPUTS: Final[dict[str, Tensors]] = {
    "vision_encoder": _IMAGE,
    "qformer_voting": {
        "kept_indices": ("int64", "??"),
        "kept_embeds": ("float", "??n"),
        "token_scores": ("float32", "?n"),
    },
    "language_model": _CHOICE,
    "text_encoder": _CROSS,
    "text_decoder": _CHOICE,
    "question_encoder": _CROSS,
    "answer_decoder": _CHOICE,
    "image_keys": _CROSS,
    "caption_decoder": _CHOICE,
    "statement_encoder": {"truth_logits": ("float32", "?n")},
    "text_embedding": {"text_embeds": ("float32", "?n")},
    "image_embedding": {"image_vector": ("float32", "?n")},
    "image_text_matching": {"match_logits": ("float32", "?n")},
}
"""Outputs that each graph must have; diagnostics are others."""


OPTIONAL_OUTPUTS: Final[dict[str, Tensors]] = {
    "vision_encoder": {
        "image_weights": ("float", "?."),
        "kept_positions": ("int64", "??"),
        "kept_counts": ("int64", "n"),
        "positions.": ("int64", "??"),
        "merged_into.": ("int64", "?."),
    },
    "question_encoder": {"encoded_lengths": ("int64", "?")},
}
"""Outputs that a graph may have, and what they are then."""

_CROSS_READ: Final = (
    ("text_encoder", "text_decoder"),
    ("question_encoder", "answer_decoder"),
    ("image_keys", "caption_decoder"),
)
"""Graphs that output cross_key_values, each with the one that reads them."""


def check_interfaces(graphs: Mapping[str, GraphSpec]) -> None:
    """Raises ValueError, which names graph and tensor, where the runtime could not drive the graphs."""
    for name, graph in graphs.items():
        if name not in INPUTS:  # it stands for another one, whose tensors it has
            continue
        _check_all(f"graphs.{name}.inputs", graph.inputs, INPUTS[name], OPTIONAL.get(name, {}))
        optional = OPTIONAL_OUTPUTS.get(name, {})
        _check_some(f"graphs.{name}.outputs", graph.outputs, {**OUTPUTS[name], **optional}, absent_ok=optional)
    for reader in ("qformer_voting", "question_encoder", "image_keys", "image_embedding", "image_text_matching"):
        if reader not in graphs:
            continue
        given = {tensor.name for name, graph in graphs.items() if name != reader for tensor in graph.outputs}
        for tensor in graphs[reader].inputs:
            if tensor.name.startswith("image_") and tensor.name not in given:
                raise ValueError(f"graphs.{reader}.inputs: {tensor.name} is an output of no graph before it")
    for name, graph in graphs.items():
        _check_cache(f"graphs.{name}", graph)
    for encoder, decoder in _CROSS_READ:
        if decoder in graphs:
            taken = {t.name: t for t in graphs[decoder].inputs if t.name.startswith("cross_key_values.")}
            put_out = {t.name: t for t in graphs[encoder].outputs}
            if any(put_out.get(key) != tensor for key, tensor in taken.items()):
                raise ValueError(f"graphs.{decoder}.inputs: cross_key_values are not those that {encoder} outputs")


def _check_all(where: str, given: Iterable[TensorSpec], needed: Tensors, optional: Tensors) -> None:
    for tensor in given:
        if _pattern(tensor.name, needed) is None and _pattern(tensor.name, optional) is None:
            raise ValueError(f"{where}: {tensor.name!r} is nothing that the runtime has")
    _check_some(where, given, {**needed, **optional}, absent_ok=optional)


def _check_some(where: str, given: Iterable[TensorSpec], needed: Tensors, absent_ok: Tensors | None = None) -> None:
    found: set[str] = set()
    seen: set[str] = set()
    for tensor in given:
        if tensor.name in seen:
            raise ValueError(f"{where}: {tensor.name!r} is there twice")
        seen.add(tensor.name)
        key = _pattern(tensor.name, needed)
        if key is not None:
            found.add(key)
            _check_tensor(where, tensor, *needed[key])
    for name in needed:
        if name not in found and name not in (absent_ok or {}):
            raise ValueError(f"{where}: {name.rstrip('.')} is missing")


def _pattern(name: str, known: Tensors) -> str | None:
    return next((key for key in known if name == key or (key.endswith(".") and name.startswith(key))), None)


def _check_tensor(where: str, tensor: TensorSpec, dtype: str, letters: str) -> None:
    accepted = ("float32", "float16", "bfloat16") if dtype == "float" else (dtype,)
    if tensor.dtype not in accepted:
        raise ValueError(f"{where}: {tensor.name} is {tensor.dtype!r}, not {' or '.join(accepted)}")
    if len(tensor.shape) != len(letters):
        raise ValueError(f"{where}: {tensor.name} has {len(tensor.shape)} dimensions, not {len(letters)}")
    for dimension, letter in zip(tensor.shape, letters):
        if letter != EITHER and isinstance(dimension, str) != (letter == FREE):
            raise ValueError(
                f"{where}: {tensor.name}: a dimension is {dimension!r}, which should be "
                + ("free" if letter == FREE else "a number")
            )


def _check_cache(where: str, graph: GraphSpec) -> None:
    """A cache is read and written in place."""
    outputs = {tensor.name: tensor for tensor in graph.outputs}
    for tensor in graph.inputs:
        if tensor.name.startswith("past_key_values."):
            written = outputs.get(tensor.name.replace("past_key_values.", "present."))
            if written is None or (written.dtype, written.shape) != (tensor.dtype, tensor.shape):
                raise ValueError(f"{where}: {tensor.name} has no output of the same shape that it is written by")
