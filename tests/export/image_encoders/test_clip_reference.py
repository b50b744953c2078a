"""The reference of an encoder that prunes, on CLIP's modules, against what Hugging Face's own model gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPModel

from catp.export.image_encoders.pruned_reference import encode


@pytest.fixture(scope="module")
def vision(clip_checkpoint: Path) -> torch.nn.Module:
    return CLIPModel.from_pretrained(clip_checkpoint, attn_implementation="eager").eval().vision_model


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(2))


def test_without_pruning_it_is_hugging_face_s_encoder(vision: torch.nn.Module, pixels: torch.Tensor) -> None:
    found = encode(vision, pixels, "cls", "drop", (), (), None, None)
    with torch.no_grad():
        wanted = vision(pixels).last_hidden_state
    np.testing.assert_allclose(found.embeds, wanted, atol=1e-5)


@pytest.mark.parametrize("merge", ["drop", "nearest"])
def test_the_first_layer_keeps_what_cls_attends_to(vision: torch.nn.Module, pixels: torch.Tensor, merge: str) -> None:
    found = encode(vision, pixels, "cls", merge, (0,), (20,), None, None)  # type: ignore[arg-type]
    with torch.no_grad():
        maps = vision(pixels, output_attentions=True).attentions[0]
    wanted = maps[:, :, 0, 1:].mean(1).argsort(1, descending=True)[:, :20]
    for kept, best in zip(found.positions, wanted):
        assert set(kept) == set(best.tolist())


def test_tokens_that_are_left_are_as_if_there_had_been_no_others(vision: torch.nn.Module, pixels: torch.Tensor) -> None:
    """After a layer that drops, written out: layer norm, q, k, v apart, heads, quick GELU."""
    found = encode(vision, pixels, "cls", "drop", (0,), (20,), None, None)
    with torch.no_grad():
        first: torch.Tensor = vision(pixels, output_hidden_states=True).hidden_states[0]
        for row in range(2):
            hidden = first[row].double().numpy()
            for number, layer in enumerate(vision.encoder.layers):
                hidden = hidden + _attended(layer, hidden)
                if number == 0:
                    hidden = np.concatenate([hidden[:1], hidden[1 + found.positions[row]]])
                hidden = hidden + _mlp(layer, hidden)
            np.testing.assert_allclose(found.embeds[row], hidden, atol=1e-5)


def _linear(part: torch.nn.Linear, values: np.ndarray) -> np.ndarray:
    return values @ part.weight.double().numpy().T + part.bias.double().numpy()


def _norm(part: torch.nn.LayerNorm, values: np.ndarray) -> np.ndarray:
    centred = values - values.mean(1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(1, keepdims=True) + part.eps)
    return scaled * part.weight.double().numpy() + part.bias.double().numpy()


def _attended(layer: torch.nn.Module, hidden: np.ndarray) -> np.ndarray:
    own, normed = layer.self_attn, _norm(layer.layer_norm1, hidden)
    queries, keys, values = (_linear(part, normed) for part in (own.q_proj, own.k_proj, own.v_proj))
    outputs = []
    for head in range(5):
        part = slice(12 * head, 12 * head + 12)
        logits = queries[:, part] @ keys[:, part].T / np.sqrt(12)
        powers = np.exp(logits - logits.max(1, keepdims=True))
        outputs.append(powers / powers.sum(1, keepdims=True) @ values[:, part])
    return _linear(own.out_proj, np.concatenate(outputs, 1))


def _mlp(layer: torch.nn.Module, hidden: np.ndarray) -> np.ndarray:
    inner = _linear(layer.mlp.fc1, _norm(layer.layer_norm2, hidden))
    return _linear(layer.mlp.fc2, inner / (1 + np.exp(-1.702 * inner)))
