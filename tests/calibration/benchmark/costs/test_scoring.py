"""Costs of the graphs that score texts: a small case by hand, every kind against PyTorch's own counter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from catp.calibration.benchmark.costs.base import Workload
from catp.calibration.benchmark.costs.cost import Cost, cost_of
from catp.calibration.benchmark.costs.geometry import ScoringGeometry, read_geometry
from catp.calibration.benchmark.costs.scoring import cross_flops, text_flops, twin_flops
from catp.export.checkpoints.loading import load_checkpoint
from catp.runtime.bundle.encoder_pruning import QuestionPruningSpec, text_tokens
from catp.runtime.bundle.folder import open_bundle

TEXT = ScoringGeometry(layers=2, width=4, feed_forward=6, vocabulary=9, positions=8, vector=3, merge_from=1)
TOKENS, SEEN = 7, 50


def costs(bundle: Path, **asked: int) -> Cost:
    opened = open_bundle(bundle)
    kept = opened.manifest.tokens
    work = Workload(**{"batch": 1, "num_kept": kept, "prompt_tokens": TOKENS, "new_tokens": 0, **asked})
    return cost_of(opened.manifest, read_geometry(opened), work, 0.0)


def counted(run: Any) -> int:
    """Operations of matrix products, by PyTorch."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops()


def model_of(checkpoint: Path) -> Any:
    model = load_checkpoint(str(checkpoint)).model
    model.set_attn_implementation("eager")
    return model


def test_text_by_hand() -> None:
    projections = 4 * (2 * 3 * 4 * 4)
    attention = 2 * (2 * 3 * 3 * 4)
    assert text_flops(TEXT, [(3, 3)] * 2) == 2 * (projections + attention + 2 * (2 * 3 * 4 * 6))
    cross = 2 * (2 * 3 * 4 * 4) + 2 * (2 * 5 * 8 * 4) + 2 * (2 * 3 * 5 * 4)
    assert cross_flops(4, 3, 5, 8) == cross
    merge, head = 2 * 3 * 8 * 4, 2 * 4 * 4 + 2 * 4 * 2
    assert twin_flops(TEXT, [(3, 3)] * 2, 5, 8) == 2 * 2 * cross + merge + head


def test_a_text_that_is_pruned_by_hand(clip_bundle: Path) -> None:
    projections, attention = 4 * (2 * 4 * 4), 2 * (2 * 4)
    mlp = 2 * (2 * 4 * 6)
    # Seven tokens come in and five are left; of these three.
    wanted = 7 * projections + 49 * attention + 5 * mlp + 5 * projections + 25 * attention + 3 * mlp
    assert text_flops(TEXT, [(7, 5), (5, 3)]) == wanted
    # Of twelve tokens the first and the end stay; of ten words each layer keeps 40 %, rounded up, and one more.
    assert text_tokens(12, 3, 2, 400) == [(12, 7), (7, 5), (5, 5)]
    opened = open_bundle(clip_bundle)
    pruning = QuestionPruningSpec(rule="self-cls", form="schedule", fraction=0.2, source="a test")
    pruned = opened.manifest.model_copy(update={"text_pruning": pruning})
    work = Workload(batch=1, num_kept=opened.manifest.tokens, prompt_tokens=TOKENS, new_tokens=0)
    dense, less = (cost_of(found, read_geometry(opened), work, 0.0).stages for found in (opened.manifest, pruned))
    assert less["text"].flops < 0.8 * dense["text"].flops and less["image"] == dense["image"]


def test_statements_are_counted_as_pytorch_does(nlvr_bundle: Path, nlvr_checkpoint: Path) -> None:
    model, ids = model_of(nlvr_checkpoint), torch.ones(1, TOKENS, dtype=torch.long)
    embeds = torch.zeros(1, SEEN, model.config.vision_config.hidden_size)
    found = costs(nlvr_bundle).stages
    assert set(found) == {"vision", "text"}
    side = model.config.vision_config.image_size
    pixels = torch.zeros(2, 3, side, side)  # of both pictures
    assert found["vision"].flops == counted(lambda: model.vision_model(pixels))
    assert found["text"].flops == counted(lambda: model.judge(ids, torch.ones_like(ids), embeds, embeds))


def test_blip_is_counted_as_pytorch_does(blip_retrieval_bundle: Path, blip_retrieval_checkpoint: Path) -> None:
    model, ids = model_of(blip_retrieval_checkpoint), torch.ones(1, TOKENS, dtype=torch.long)
    embeds = torch.zeros(1, SEEN, model.config.vision_config.hidden_size)
    found = costs(blip_retrieval_bundle).stages
    assert set(found) == {"vision", "image", "text", "match"}
    assert found["image"].flops == counted(lambda: model.vision_proj(embeds[:, 0]))
    assert found["text"].flops == counted(lambda: model.text_proj(model.text_encoder(ids).last_hidden_state[:, 0]))
    assert found["match"].flops == counted(
        lambda: model.itm_head(model.text_encoder(ids, encoder_hidden_states=embeds).last_hidden_state[:, 0])
    )
    # Three pictures with two texts each: six texts and pairs, three vectors of pictures.
    several = costs(blip_retrieval_bundle, batch=3, texts=2).stages
    times = {stage: several[stage].flops / found[stage].flops for stage in found}
    assert times == {"vision": 3, "image": 3, "text": 6, "match": 6}


def test_clip_is_counted_as_pytorch_does(clip_bundle: Path, clip_checkpoint: Path) -> None:
    model, ids = model_of(clip_checkpoint), torch.ones(1, TOKENS, dtype=torch.long)
    found = costs(clip_bundle).stages
    assert set(found) == {"vision", "image", "text"}
    assert found["text"].flops == counted(lambda: model.get_text_features(input_ids=ids))
    several = costs(clip_bundle, batch=3, texts=2).stages  # classes are the same for all pictures
    assert several["text"].flops == 2 * found["text"].flops and several["image"].flops == 3 * found["image"].flops


def test_blip2_is_counted_as_pytorch_does(retrieval_bundle: Path, retrieval_checkpoint: Path) -> None:
    model, ids = model_of(retrieval_checkpoint), torch.ones(1, TOKENS, dtype=torch.long)
    embeds = torch.zeros(1, SEEN, model.config.vision_config.hidden_size)
    queries = model.query_tokens

    def match() -> None:
        inputs = model.embeddings(input_ids=ids, query_embeds=queries)
        hidden = model.qformer(
            query_embeds=inputs, query_length=queries.shape[1], encoder_hidden_states=embeds
        ).last_hidden_state
        model.itm_head(hidden[:, : queries.shape[1]])

    def text() -> None:
        hidden = model.qformer(query_embeds=model.embeddings(input_ids=ids), query_length=0).last_hidden_state
        model.text_projection(hidden[:, 0])

    found = costs(retrieval_bundle)
    assert set(found.stages) == {"vision", "qformer", "text", "match"} and found.cache_bytes == 0
    assert found.stages["match"].flops == counted(match) and found.stages["text"].flops == counted(text)
    fewer = costs(retrieval_bundle, num_kept=6).stages
    assert fewer["match"].flops < found.stages["match"].flops and fewer["text"] == found.stages["text"]


@pytest.mark.heavy
def test_an_encoder_that_prunes_makes_what_reads_it_cheaper(pruned_clip_bundle: Path, clip_bundle: Path) -> None:
    pruned, dense = costs(pruned_clip_bundle).stages, costs(clip_bundle).stages
    assert pruned["vision"].flops < dense["vision"].flops and pruned["image"] == dense["image"]


@pytest.mark.parametrize("name", ["nlvr_bundle", "blip_retrieval_bundle", "clip_bundle", "retrieval_bundle"])
def test_weights_are_read_once_and_embeddings_by_the_row(name: str, request: pytest.FixtureRequest) -> None:
    bundle: Path = request.getfixturevalue(name)
    graphs, language = open_bundle(bundle).manifest.graphs, read_geometry(open_bundle(bundle)).language
    graph = "statement_encoder" if "statement_encoder" in graphs else "text_embedding"
    tables = 4 * (language.vocabulary + language.positions) * language.width
    images = 2 * 4 * SEEN * 60 if graph == "statement_encoder" else 0
    expected = 4 * graphs[graph].parameters - tables + images
    assert costs(bundle).stages["text"].bytes == pytest.approx(expected, rel=0.02)  # small ones lie in the graph itself
