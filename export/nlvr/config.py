"""Configuration of a BLIP for NLVR2: Hugging Face's of BLIP, and where the two images begin to be merged."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from transformers import BlipConfig

MERGE_FROM = 6
"""First text layer of the official code that merges what it read of the two images by a product of weights."""


@strict
class BlipNlvr2Config(BlipConfig):
    """`config.json` with model_type "blip-nlvr2".

    Args:
        merge_from: the first layer with a `merge_layer`; those before take the mean of what they read of both images.
    """

    model_type = "blip-nlvr2"
    merge_from: int = MERGE_FROM
