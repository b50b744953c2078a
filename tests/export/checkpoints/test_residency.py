"""A checkpoint in half precision computes in float32, of which one part is in memory."""

from pathlib import Path

import pytest
import torch
from transformers import Blip2ForConditionalGeneration

from catp.export.checkpoints.loading import load_checkpoint
from catp.export.checkpoints.residency import give_back, one_part_in_memory
from catp.export.demo import CHECKPOINT, samples
from catp.export.verification.reference import Reference
from catp.runtime.inputs.images import load_image

PARTS = ("vision_model", "qformer", "language_projection", "language_model")


def half_checkpoint(folder: Path, dtype: torch.dtype) -> str:
    for path in CHECKPOINT.glob("*.json"):
        (folder / path.name).write_bytes(path.read_bytes())
    model = Blip2ForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32)
    model.to(dtype).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_parts_take_turns_and_answers_are_float32_s(tmp_path: Path, dtype: torch.dtype) -> None:
    name = half_checkpoint(tmp_path, dtype)
    stored, whole = load_checkpoint(name, dtype=None), load_checkpoint(name)
    before = {key: (parameter.data_ptr(), parameter.dtype) for key, parameter in stored.model.named_parameters()}
    assert stored.model.vision_model.embeddings.class_embedding.dtype == dtype
    seen: list[list[str]] = []
    for part in PARTS:
        getattr(stored.model, part).register_forward_pre_hook(lambda *_: seen.append(widened(stored.model)))
    image, prompt = load_image(samples()[0].image), samples()[0].prompt
    found = []
    for checkpoint in (stored, whole):
        reference = Reference(checkpoint)
        with one_part_in_memory(checkpoint.model):
            found.append(reference.generate(reference.pixel_values([image]), reference.tokenize(prompt), 8))
    assert found[0].token_ids == found[1].token_ids and (found[0].logits == found[1].logits).all()
    assert {tuple(parts) for parts in seen} <= {(), *((part,) for part in PARTS)}
    assert {key: (p.data_ptr(), p.dtype) for key, p in stored.model.named_parameters()} == before


def widened(model: torch.nn.Module) -> list[str]:
    """Parts that were half precision and are float32; the Q-Former may always be, as transformers keeps it."""
    return [
        part for part in PARTS if part != "qformer" and next(getattr(model, part).parameters()).dtype == torch.float32
    ]


def test_what_is_not_mapped_is_kept() -> None:
    tensor = torch.arange(100_000)
    give_back(tensor[1:])
    assert tensor.equal(torch.arange(100_000))
