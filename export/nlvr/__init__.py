"""BLIP for NLVR2 as a PyTorch module: two images and a statement, true or false. Hugging Face has no such class."""

from __future__ import annotations

from transformers import AutoConfig

from catp.export.nlvr.config import BlipNlvr2Config
from catp.export.nlvr.model import BlipForNlvr2

AutoConfig.register(BlipNlvr2Config.model_type, BlipNlvr2Config, exist_ok=True)

__all__ = ["BlipForNlvr2", "BlipNlvr2Config"]
