"""CLIP's text graph that prunes: word by word against a loop written out from the design, with pads and without."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from checkpoints import clip_tokenizer
from clip_official import official_weights, tiny_clip

from catp.export.encoder_pruning import make_rule
from catp.export.encoder_pruning.guidance import Guidance, TokenMap
from catp.export.graphs import text_embedding
from catp.export.graphs.pruned_clip_text import PrunedTextEmbedding
from catp.export.language_models.pruned_text_reference import encode_causally
from catp.export.writing.writer import write_graph
from catp.runtime.bundle.encoder_pruning import QuestionPruningSpec

TEXTS = ["red", "what is it, and where is the other one?", "", "the thin red thing is in there"]
FRACTION = 0.6
LAYERS = 3
"""The order of words in the second layer is first felt by the end in the third."""


def tiny() -> Any:
    return tiny_clip(text_layers=LAYERS)


def text_guidance() -> Guidance:
    weights = official_weights(tiny())
    names = [f"transformer.resblocks.{layer}.query_model.q_map.0" for layer in range(LAYERS)]
    return Guidance(
        weights["space_dict"], tuple(TokenMap(weights[f"{name}.weight"], weights[f"{name}.bias"]) for name in names)
    )


@torch.no_grad()
def by_hand(model: Any, ids: list[int], guidance: Guidance | None) -> tuple[torch.Tensor, list[list[int]]]:
    """The vector of a text, and which places of it each layer keeps, without the first and the end; -1: merged.

    One head, so that nothing is left to a sum over heads: each token is a row of numbers in a list.
    """
    text = model.text_model
    rows = list(text.embeddings(torch.tensor([ids]))[0])
    places = list(range(len(rows)))
    kept_places = []
    for number, layer in enumerate(text.encoder.layers):
        attention = layer.self_attn
        normed = [layer.layer_norm1(row) for row in rows]
        queries = [attention.q_proj(row) / 8 for row in normed]
        keys, values = [attention.k_proj(row) for row in normed], [attention.v_proj(row) for row in normed]
        maps, reads = [], []
        for place, query in enumerate(queries):
            powers = [math.exp(float(query @ key)) for key in keys[: place + 1]]
            maps.append([power / sum(powers) for power in powers] + [0.0] * (len(rows) - place - 1))
            reads.append(sum(share * value for share, value in zip(maps[-1], values)))
        after = [row + attention.out_proj(read) for row, read in zip(rows, reads)]
        words = range(1, len(rows) - 1)
        given = {j: sum(maps[i][j] for i in words) for j in words}
        total = sum(given.values()) + 1e-8
        from_end = {j: maps[-1][j] * (float(reads[j].norm()) / (float(reads[j].norm()) + 1e-8)) for j in words}
        scores = {j: (given[j] / total + from_end[j]) / 2 for j in words}
        if guidance is not None:
            assert guidance.maps is not None
            token_map = guidance.maps[number]
            found = {
                j: float((guidance.space_dict @ (token_map.weight @ rows[j] + token_map.bias)).max()) for j in words
            }
            whole = sum(found.values()) + 1e-8
            scores = {j: (given[j] / total + found[j] / whole + from_end[j]) / 3 for j in words}
        count = max(1, math.ceil(round(FRACTION * len(words), 9)))
        if count < len(words) - 1:
            best = sorted(words, key=lambda j: -scores[j])
            kept, rest = sorted(best[:count]), best[count:]
            share = sum(scores[j] for j in rest) + 1e-8
            merged = sum(scores[j] / share * after[j] for j in rest)
            places = [places[0], *(places[j] for j in kept), -1, places[-1]]
            after = [after[0], *(after[j] for j in kept), merged, after[-1]]
        kept_places.append(places[1:-1])
        rows = [row + layer.mlp(layer.layer_norm2(row)) for row in after]
    pooled = model.text_projection(text.final_layer_norm(rows[-1]))
    return pooled / pooled.norm(), kept_places


@pytest.mark.parametrize("guided", [False, True])
def test_the_reference_is_the_loop_by_hand(guided: bool) -> None:
    model, tokenizer = tiny(), clip_tokenizer()
    guidance = text_guidance() if guided else None
    spec = QuestionPruningSpec(
        rule="madtp" if guided else "self-cls", form="schedule", fraction=FRACTION, source="a test"
    )
    dense = QuestionPruningSpec(rule="self-cls", form="schedule", fraction=0.999, source="a test")
    left = []
    for text in TEXTS:
        ids = tokenizer(text).input_ids
        wanted, places = by_hand(model, ids, guidance)
        with torch.no_grad():
            found = model.text_projection(encode_causally(model.text_model, torch.tensor([ids]), spec, guidance))[0]
            whole = model.text_projection(encode_causally(model.text_model, torch.tensor([ids]), dense, None))[0]
            torch.testing.assert_close(
                whole, model.get_text_features(torch.tensor([ids])).pooler_output[0], atol=1e-5, rtol=1e-4
            )
        torch.testing.assert_close(found / found.norm(), wanted, atol=1e-5, rtol=1e-4)
        left.append([len(ids) - 2, *map(len, places)])
    words = left[1][0]
    assert left[2] == [0] * (1 + LAYERS) and left[1][1] == math.ceil(FRACTION * words) + 1 < words
    assert left[1][2] == math.ceil(FRACTION * left[1][1]) + 1  # the merged token is one like any other


@pytest.mark.heavy
@pytest.mark.parametrize("guided", [False, True])
def test_the_graph_is_the_loop_by_hand_for_every_row_of_a_batch(guided: bool, tmp_path: Path) -> None:
    model, tokenizer = tiny(), clip_tokenizer()
    guidance = text_guidance() if guided else None
    module = PrunedTextEmbedding(model, make_rule("madtp" if guided else "self-cls"), guidance, 600)
    write_graph(text_embedding.graph(module, keeps_float32=False), tmp_path, "fp32")
    session = onnxruntime.InferenceSession(tmp_path / "text_embedding.onnx")
    wanted = torch.stack([by_hand(model, tokenizer(text).input_ids, guidance)[0] for text in TEXTS]).numpy()
    padded = tokenizer(TEXTS, padding=True, return_tensors="np")
    ids, mask = padded["input_ids"], padded["attention_mask"]
    assert mask.min() == 0
    for pad in (None, 4):  # a pad may be any token
        given = ids if pad is None else np.where(mask == 1, ids, pad)
        (found,) = session.run(None, {"text_ids": given, "text_mask": mask})
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    for row, text in enumerate(TEXTS):
        alone = tokenizer(text, return_tensors="np")
        (found,) = session.run(None, {"text_ids": alone["input_ids"], "text_mask": alone["attention_mask"]})
        np.testing.assert_allclose(found[0], wanted[row], atol=1e-5)
    with torch.no_grad():
        whole = model.get_text_features(torch.tensor([tokenizer(TEXTS[1]).input_ids])).pooler_output[0]
    assert np.abs(whole / whole.norm() - wanted[1]).max() > 1e-3  # it does leave something out
