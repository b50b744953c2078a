"""A second small BLIP-2, of 144 patches a picture: enough of them for pruning inside the encoder to mean something."""

from __future__ import annotations

from pathlib import Path

CHECKPOINT = Path(__file__).parent / "checkpoint"
"""A Hugging Face checkpoint folder (Blip2ForConditionalGeneration, float16 safetensors)."""

MODEL_ID = "catp-demo-blip2-fine"
"""The name by which bundles call the model."""
