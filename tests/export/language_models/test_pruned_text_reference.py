"""The reference of BLIP's text encoders that prune: Hugging Face's where nothing goes, a loop by hand where some do."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from catp.export.checkpoints.loading import load_checkpoint
from catp.export.language_models.pruned_text_reference import encode
from catp.export.language_models.pruned_texts import PRUNED
from catp.runtime.bundle.encoder_pruning import QuestionPruningSpec

IDS = torch.tensor([[2, 9, 14, 7, 11, 5, 8, 30, 6, 12, 3]])


def spec(fraction: float) -> QuestionPruningSpec:
    return QuestionPruningSpec(rule="self-cls", form="schedule", fraction=fraction, source="a test")


@torch.no_grad()
def by_hand(encoder: Any, read: Callable[[Any, torch.Tensor], torch.Tensor], fraction: float) -> torch.Tensor:
    """arXiv 2403.02991, section 3, without guidance: the first token's state [W] after every layer has pruned."""
    hidden = encoder.embeddings(IDS)[0]
    for layer in encoder.encoder.layer:
        own, width = layer.attention.self, layer.attention.self.attention_head_size
        heads = range(own.num_attention_heads)
        parts = [slice(head * width, (head + 1) * width) for head in heads]
        queries, keys, values = own.query(hidden), own.key(hidden), own.value(hidden)
        maps = [torch.softmax(queries[:, part] @ keys[:, part].T / math.sqrt(width), 1) for part in parts]
        reads = [of_head @ values[:, part] for of_head, part in zip(maps, parts)]
        after = layer.attention.output(torch.cat(reads, 1), hidden)
        tokens = range(1, len(hidden))
        given = torch.tensor([sum(max(maps[h][i, j] for h in heads) for i in tokens) for j in tokens])
        first = []
        for j in tokens:
            norms = [reads[h][j].norm() for h in heads]
            first.append(sum(maps[h][0, j] * norms[h] / (sum(norms) + 1e-8) for h in heads))
        scores = (given / (given.sum() + 1e-8) + torch.tensor(first)) / 2
        count = max(1, math.ceil(round(fraction * len(scores), 9)))
        if count < len(scores) - 1:
            order = scores.argsort(descending=True)
            kept, rest = order[:count] + 1, order[count:] + 1
            shares = scores[rest - 1] / (scores[rest - 1].sum() + 1e-8)
            after = torch.cat([after[:1], after[kept], (shares @ after[rest])[None]])
        hidden = layer.feed_forward_chunk(read(layer, after[None]))[0]
    return hidden[0]


def images(model: Any) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(6)
    return [torch.randn(1, 12, model.config.vision_config.hidden_size, generator=generator) for _ in range(2)]


def cases(blip: Any, nlvr: Any) -> dict[str, tuple[Any, Callable[[Any, torch.Tensor], torch.Tensor]]]:
    first, second = images(nlvr)
    return {
        "alone": (blip.text_encoder, lambda layer, tokens: tokens),
        "with an image": (blip.text_encoder, lambda layer, tokens: layer.crossattention(
            tokens, encoder_hidden_states=images(blip)[0])[0]),
        "with two": (nlvr.text_encoder, lambda layer, tokens: layer.crossattention(tokens, first, second)),
    }  # fmt: skip


@pytest.fixture(scope="module")
def models(blip_retrieval_checkpoint: Path, nlvr_checkpoint: Path) -> tuple[Any, Any]:
    blip, nlvr = (load_checkpoint(str(path)).model for path in (blip_retrieval_checkpoint, nlvr_checkpoint))
    return blip, nlvr


@pytest.mark.parametrize("how", ["alone", "with an image", "with two"])
def test_what_each_layer_leaves_is_what_the_loop_leaves(models: tuple[Any, Any], how: str) -> None:
    encoder, read = cases(*models)[how]
    for fraction, left in ((0.5, 5), (0.3, 4)):
        found = encode(encoder, IDS, read, spec(fraction), None)
        np.testing.assert_allclose(found[0, 0], by_hand(encoder, read, fraction), atol=1e-5)
        if len(encoder.encoder.layer) == 2:
            assert found.shape[1] == left
    whole = encode(encoder, IDS, read, spec(0.999), None)
    assert whole.shape[1] == IDS.shape[1]
    np.testing.assert_allclose(whole[0, 0], by_hand(encoder, read, 0.999), atol=1e-5)
    assert np.abs(whole[0, 0] - encode(encoder, IDS, read, spec(0.3), None)[0, 0]).max() > 1e-4


def test_while_it_stands_in_the_checkpoint_s_own_class_prunes(models: tuple[Any, Any]) -> None:
    blip, nlvr = models
    pixels = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    given = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "pixel_values": pixels[:1]}

    def of_blip() -> list[torch.Tensor]:
        with torch.no_grad():
            return [blip(**given).itm_score, blip(**given, use_itm_head=False).itm_score]

    def of_nlvr() -> list[torch.Tensor]:
        with torch.no_grad():
            return [nlvr(pixels, IDS, torch.ones_like(IDS))]

    for model, run, kind in ((blip, of_blip, "matching"), (nlvr, of_nlvr, "two-images")):
        dense = run()
        for fraction, same in ((0.999, True), (0.4, False)):
            with PRUNED[kind](spec(fraction), None).standing_in(model):
                found = run()
            assert all(torch.allclose(a, b, atol=1e-5) == same for a, b in zip(dense, found)), (kind, fraction)
        assert all(torch.equal(a, b) for a, b in zip(dense, run()))  # and then no longer
