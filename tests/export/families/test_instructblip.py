"""InstructBLIP in half precision: its Q-Former stays float32, whatever it reads and whatever reads it."""

from pathlib import Path

import pytest
import torch

from catp.export.checkpoints.loading import load_checkpoint
from catp.export.voting import make_method
from catp.export.writing.writer import write_graph


@pytest.mark.heavy  # one more export
def test_a_float32_q_former_between_half_precision_graphs(instructblip_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(str(instructblip_checkpoint))
    checkpoint.family.set_dtype(checkpoint.model, torch.float16)
    _, qformer, _ = checkpoint.family.graphs(checkpoint.model, make_method("distinct"))
    spec = write_graph(qformer, tmp_path, "fp32")  # refuses a product of two types
    assert spec.input("image_embeds").dtype == spec.output("kept_embeds").dtype == "float16"
    assert spec.output("token_scores").dtype == "float32"
