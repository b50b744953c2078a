"""A small BLIP that judges statements about two pictures: checkpoint, recipe, recorded accuracy."""

from __future__ import annotations

from pathlib import Path

CHECKPOINT = Path(__file__).parent / "checkpoint"
"""A checkpoint folder of `catp.export.nlvr.BlipForNlvr2`, float16 safetensors."""

MODEL_ID = "catp-demo-nlvr"
"""The name by which bundles call the model."""
