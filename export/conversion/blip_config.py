"""Sizes of a BLIP, from the shapes of its weights, as Hugging Face's configuration."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from transformers import BlipConfig

from catp.export.conversion.blip_names import Task
from catp.export.conversion.listing import listed
from catp.export.nlvr import BlipNlvr2Config
from catp.runtime.errors import UsageError

_HEAD = 64
"""Width of a head: the official code has 12 heads at 768 and 16 at 1024."""

_LABEL_SMOOTHING = 0.1
"""Label smoothing of the official decoder's loss, by which it ranks answers."""

Shapes = Mapping[str, tuple[int, ...]]


def read_config(where: str, task: Task, shapes: Shapes) -> Any:
    """The BlipConfig; token ids are its defaults.

    What no shape tells is as in the official code: eps is 1e-6 in the vision encoder, 1e-12 in the text.

    Args:
        where: the weights are, for the message.
        shapes: of weights, by Hugging Face's names.

    Raises:
        UsageError: a weight that tells a size is missing, or of a shape that a BLIP can't have.
    """
    sizes = Sizes(where, shapes)
    positions, width = sizes.of("vision_model.embeddings.position_embedding", "1PW")[1:]
    vision = {**sizes.vision(positions, width), "layer_norm_eps": 1e-6}
    stem = "text_encoder." if "text_encoder" in task.parts else "text_decoder.bert."
    rows, width = sizes.of(f"{stem}embeddings.word_embeddings.weight", "VW")
    text = {
        "vocab_size": rows,
        "hidden_size": width,
        "intermediate_size": sizes.of(f"{stem}encoder.layer.0.intermediate.dense.weight", "IW")[0],
        "num_hidden_layers": sizes.layers(f"{stem}encoder.layer."),
        "num_attention_heads": sizes.heads("text", width),
        "max_position_embeddings": sizes.of(f"{stem}embeddings.position_embeddings.weight", "PW")[0],
        "layer_norm_eps": 1e-12,
        "label_smoothing": _LABEL_SMOOTHING,
    }
    if "cls_head" in task.parts:
        return _of_two_images(where, task, shapes, text, vision)
    more: dict[str, Any] = {}
    if "vision_proj" in task.parts:
        more["image_text_hidden_size"] = sizes.of("vision_proj.weight", "OW")[0]
    config: Any = BlipConfig(text_config=text, vision_config=vision, **more)
    config.architectures = [task.architecture]
    return config


def _of_two_images(where: str, task: Task, shapes: Shapes, text: dict[str, Any], vision: dict[str, Any]) -> Any:
    """The configuration of a model for NLVR2, whose layers merge what they read of both images from one of them on."""
    merging = {
        int(match[1])
        for name in shapes
        if (match := re.fullmatch(r"text_encoder\.encoder\.layer\.(\d{1,6})\.(.+)\.merge_layer\.weight", name))
    }
    layers = text["num_hidden_layers"]
    first = layers - len(merging)
    if merging != set(range(first, layers)):
        raise UsageError(
            f"{where}: of {layers} layers {', '.join(map(str, sorted(merging)))} have a merge_layer; accepted: those "
            "from one on; fetch the file again"
        )
    config: Any = BlipNlvr2Config(text_config=text, vision_config=vision, merge_from=first)
    config.architectures = [task.architecture]
    return config


class Sizes:
    """Sizes that weights tell."""

    def __init__(self, where: str, shapes: Shapes) -> None:
        self._where = where
        self._shapes = shapes

    def of(self, name: str, form: str) -> tuple[int, ...]:
        """The shape of a weight: as many sizes as `form` has letters."""
        shape = self._shapes.get(name)
        if shape is None:
            raise UsageError(f"{self._where}: weights are missing: {listed([name])}; fetch the file again")
        if len(shape) != len(form) or 0 in shape:
            raise UsageError(
                f"{self._where}: {name} is {list(shape)}, and not [{', '.join(form)}]; fetch the file again"
            )
        return shape

    def layers(self, stem: str) -> int:
        """How many there are."""
        found = {
            int(match[1]) for name in self._shapes if (match := re.match(rf"{re.escape(stem)}(\d{{1,6}})\.", name))
        }
        if found != set(range(len(found))):
            raise UsageError(f"{self._where}: of the layers {stem}*, some are missing; fetch the file again")
        return len(found)

    def vision(self, positions: int, width: int) -> dict[str, int]:
        """The sizes of a ViT, by Hugging Face's names.

        Args:
            positions: of CLS and patches.
        """
        patch = self.of("vision_model.embeddings.patch_embedding.weight", "WCHW")
        side = math.isqrt(positions - 1)
        if side * side != positions - 1 or side == 0 or patch[2] != patch[3]:
            raise UsageError(
                f"{self._where}: its {positions - 1} patches of {patch[2]} x {patch[3]} pixels are no square; "
                "accepted: square images of square patches"
            )
        return {
            "hidden_size": width,
            "intermediate_size": self.of("vision_model.encoder.layers.0.mlp.fc1.weight", "IW")[0],
            "num_hidden_layers": self.layers("vision_model.encoder.layers."),
            "num_attention_heads": self.heads("vision encoder", width),
            "image_size": side * patch[2],
            "patch_size": patch[2],
        }

    def heads(self, what: str, width: int) -> int:
        if width % _HEAD:
            raise UsageError(
                f"{self._where}: its {what} is {width} wide; accepted: multiples of {_HEAD}, the width of its heads"
            )
        return width // _HEAD
