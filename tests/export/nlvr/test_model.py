"""The module for NLVR2 against the official code's formulas in numpy, and its names against the official ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from nlvr_reference import truth_logits

from catp.export.checkpoints.loading import load_checkpoint
from catp.export.nlvr import BlipForNlvr2, BlipNlvr2Config

HEADS, EPS = 4, 1e-12


@pytest.fixture(scope="module")
def model(nlvr_checkpoint: Path) -> BlipForNlvr2:
    return load_checkpoint(str(nlvr_checkpoint)).model


@pytest.fixture(scope="module")
def asked() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Statements of 9, 4 and 6 tokens, and the tokens of their images."""
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(4, 60, (3, 9), generator=generator)
    mask = (torch.arange(9) < torch.tensor([[9], [4], [6]])).long()
    images = torch.randn(2, 3, 11, 60, generator=generator)
    return ids * mask, mask, images[0], images[1]


def test_logits_are_those_of_the_official_formulas(
    model: BlipForNlvr2, asked: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
) -> None:
    with torch.no_grad():
        found = model.judge(*asked).numpy()
    weights = {name: value.double().numpy() for name, value in model.state_dict().items()}
    ids, mask, first, second = (value.numpy() for value in asked)
    wanted = truth_logits(weights, ids, mask, first.astype(np.float64), second.astype(np.float64), HEADS, EPS)
    np.testing.assert_allclose(found, wanted, atol=2e-5 * np.abs(wanted).max())
    swapped = truth_logits(weights, ids, mask, second.astype(np.float64), first.astype(np.float64), HEADS, EPS)
    assert np.abs(swapped - wanted).max() > 0.05 * np.abs(wanted).max()  # or else left could be right


def test_a_pad_changes_nothing(
    model: BlipForNlvr2, asked: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
) -> None:
    ids, mask, first, second = asked
    with torch.no_grad():
        together = model.judge(*asked)[1:2]
        alone = model.judge(ids[1:2, :4], mask[1:2, :4], first[1:2], second[1:2])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)


def test_pictures_are_split_into_firsts_and_seconds(model: BlipForNlvr2) -> None:
    pixels = torch.randn(4, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([[2, 9, 3], [2, 12, 3]])
    with torch.no_grad():
        found = model(pixels, ids, torch.ones_like(ids))
        tokens = model.vision_model(pixels).last_hidden_state
        alone = [
            model.judge(ids[i : i + 1], torch.ones(1, 3), tokens[i : i + 1], tokens[i + 2 : i + 3]) for i in (0, 1)
        ]
    torch.testing.assert_close(found, torch.cat(alone), atol=1e-4, rtol=0)


def test_names_at_the_base_size_are_the_official_ones() -> None:
    with torch.device("meta"):
        state = BlipForNlvr2(BlipNlvr2Config()).state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    layer = "text_encoder.encoder.layer.{}.crossattention."
    assert f"{layer.format(5)}output.merge_layer.weight" not in shapes
    assert shapes[f"{layer.format(6)}output.merge_layer.weight"] == (768, 1536)
    for part in ("self0.query", "self1.key", "self0.value", "output.dense0", "output.dense1"):
        assert shapes[f"{layer.format(11)}{part}.weight"] == (768, 768)
    assert shapes["cls_head.0.weight"] == (768, 768) and shapes["cls_head.2.weight"] == (2, 768)
    assert not [
        name for name in shapes if ".crossattention.self." in name or name.endswith("crossattention.output.dense")
    ]
