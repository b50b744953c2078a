"""The embedded demo model: its checkpoint folder and a few pictures with questions about them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

CHECKPOINT = Path(__file__).parent / "checkpoint"
"""An ordinary Hugging Face checkpoint folder (Blip2ForConditionalGeneration, OPT, float16 safetensors)."""

MODEL_ID = "catp-demo"
"""What bundles of it call their model."""

IMAGES = Path(__file__).parent / "images"


@dataclass(frozen=True)
class DemoSample:
    """A held-out picture, a question about it, and the right answer."""

    image: Path
    prompt: str
    answer: str

    @property
    def question(self) -> str:
        """The prompt without the words that BLIP-2 has around a question."""
        return self.prompt.removeprefix("Question: ").removesuffix(" Answer:")


def samples() -> list[DemoSample]:
    """The pictures in IMAGES, none of which the demo model was trained on."""
    entries = json.loads((IMAGES / "questions.json").read_text())
    return [DemoSample(IMAGES / e["image"], e["prompt"], e["answer"]) for e in entries]
