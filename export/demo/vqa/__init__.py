"""A small BLIP that answers questions, trained dense and with MADTP: both checkpoints, and pictures with questions."""

from __future__ import annotations

import json
from pathlib import Path

from catp.export.demo import DemoSample

CHECKPOINT = Path(__file__).parent / "checkpoint"
"""A Hugging Face checkpoint folder (BlipForQuestionAnswering, float16 safetensors) with MADTP's own files beside it."""

DENSE = Path(__file__).parent / "dense"
"""Its dense twin: same base, same further steps and data, no pruning."""

MODEL_ID = "catp-demo-vqa"
"""The name by which bundles of the former call their model."""

IMAGES = Path(__file__).parent / "images"


def samples() -> list[DemoSample]:
    """Held-out scenes and pictures of easy-vqa's test split; neither model was trained on any of them."""
    entries = json.loads((IMAGES / "questions.json").read_text())
    return [DemoSample(IMAGES / e["image"], e["prompt"], e["answer"]) for e in entries]
