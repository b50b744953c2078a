"""Sizes of images, and the number of tokens that a ViT makes of one."""

from __future__ import annotations

from typing import Any


def image_tokens(config: Any) -> int:
    """Image tokens of a Hugging Face configuration with a `vision_config`, CLS among them."""
    (height, width), patch = pair(config.vision_config.image_size), pair(config.vision_config.patch_size)
    return (height // patch[0]) * (width // patch[1]) + 1


def pair(size: Any) -> tuple[int, int]:
    """Height and width, from both or from the side of a square."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])
