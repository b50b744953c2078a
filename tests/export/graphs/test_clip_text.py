"""CLIP's text graph: both ways in which transformers finds the token that ends a text, with pads and without."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from checkpoints import clip_config, clip_tokenizer
from transformers import CLIPModel

from catp.export.graphs import text_embedding
from catp.export.graphs.clip_text import FORMER_END, TextEmbedding
from catp.export.writing.writer import write_graph

pytestmark = pytest.mark.heavy

TEXTS = ["red", "what is it, and where is the other one?", ""]


@pytest.mark.parametrize("end", [None, FORMER_END])
def test_a_text_is_read_at_its_end_whatever_stands_behind(end: int | None, tmp_path: Path) -> None:
    torch.manual_seed(1)
    tokenizer = clip_tokenizer()
    config = clip_config(tokenizer, end)
    config.text_config.vocab_size += 4
    model = CLIPModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.text_model.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.5 if "position" in name else 0.15)
        alone = [model.get_text_features(**tokenizer(text, return_tensors="pt")).pooler_output[0] for text in TEXTS]
    wanted = torch.nn.functional.normalize(torch.stack(alone), dim=1).numpy()
    write_graph(text_embedding.graph(TextEmbedding(model), keeps_float32=False), tmp_path, "fp32")
    session = onnxruntime.InferenceSession(tmp_path / "text_embedding.onnx")
    padded = tokenizer(TEXTS, padding=True, return_tensors="np")
    ids, mask = padded["input_ids"], padded["attention_mask"]
    others = np.where(mask == 1, ids, len(tokenizer) + 2)  # a pad may be any token, also one above the end
    for given in (ids, others):
        (found,) = session.run(None, {"text_ids": given, "text_mask": mask})
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert np.abs(wanted[0] - wanted[1]).max() > 0.05
