"""Which parts of a BLIP-2 take the bundle's precision."""

from pathlib import Path

import pytest
import torch

from catp.export.checkpoints.loading import load_checkpoint


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_take_the_precision_and_rotary_frequencies_do_not(odd_checkpoint: Path, dtype: torch.dtype) -> None:
    checkpoint = load_checkpoint(str(odd_checkpoint))
    model = checkpoint.model
    frequencies = model.language_model.model.rotary_emb.inv_freq.clone()
    checkpoint.family.set_dtype(model, dtype)
    for part in (model.vision_model, model.language_projection, model.language_model):
        assert {parameter.dtype for parameter in part.parameters()} == {dtype}
    assert {parameter.dtype for parameter in model.qformer.parameters()} == {torch.float32}
    assert model.language_model.model.rotary_emb.inv_freq.equal(frequencies)
