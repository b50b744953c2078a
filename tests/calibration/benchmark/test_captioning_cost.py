"""The cost of a caption against the operations that PyTorch counts, and the bytes that its graphs have."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BlipForConditionalGeneration, DynamicCache, EncoderDecoderCache

from catp.calibration.benchmark.contenders.subject import make_timed_input
from catp.calibration.benchmark.costs.answering import step_flops
from catp.calibration.benchmark.costs.base import Workload
from catp.calibration.benchmark.costs.captioning import keys_flops
from catp.calibration.benchmark.costs.cost import cost_of, vision_flops
from catp.calibration.benchmark.costs.geometry import AnsweringGeometry, read_geometry
from catp.runtime import UsageError
from catp.runtime.bundle.folder import open_bundle

BEGUN, IMAGE = 6, 50
PROMPT = BEGUN + 1  # with what frames it, of which one token is read


@torch.no_grad()
def test_operations_are_those_of_the_checkpoint(caption_bundle: Path, caption_checkpoint: Path) -> None:
    model = BlipForConditionalGeneration.from_pretrained(caption_checkpoint, attn_implementation="eager").eval()
    bundle = open_bundle(caption_bundle)
    geometry = read_geometry(bundle)
    language = geometry.language
    assert isinstance(language, AnsweringGeometry) and geometry.qformer is None
    cost = cost_of(bundle.manifest, geometry, Workload(2, IMAGE, PROMPT, new_tokens=3), 0.0)
    with FlopCounterMode(display=False) as counted:
        embeds = model.vision_model(torch.zeros(1, 3, 56, 56)).last_hidden_state
    assert vision_flops(geometry.vision) == counted.get_total_flops() == cost.stages["vision"].flops // 2
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    ids = torch.ones(1, BEGUN, dtype=torch.long)
    read = {"encoder_hidden_states": embeds, "cache": cache, "use_cache": True, "logits_to_keep": 1}
    with FlopCounterMode(display=False) as counted:
        model.text_decoder(ids, **read)
    assert keys_flops(language, IMAGE, 60) + step_flops(language, BEGUN, IMAGE, BEGUN) == counted.get_total_flops()
    assert cost.stages["prefill"].flops == 2 * counted.get_total_flops()
    with FlopCounterMode(display=False) as counted:
        model.text_decoder(ids[:, :1], **read)
    assert step_flops(language, BEGUN + 1, IMAGE) == counted.get_total_flops()


def test_bytes_are_those_of_the_graphs_and_what_they_hand_on(caption_bundle: Path) -> None:
    bundle = open_bundle(caption_bundle)
    cost = cost_of(bundle.manifest, read_geometry(bundle), Workload(1, IMAGE, PROMPT, new_tokens=3), 0.0)
    keys, decoder = (bundle.manifest.graphs[name].external_data for name in ("image_keys", "caption_decoder"))
    assert keys is not None and decoder is not None
    token = 2 * 3 * 40 * 4  # keys and values of 3 layers
    read = decoder.size - 64 * 40 * 4  # less 64 positions
    assert cost.stages["decode"].bytes == read + token * (IMAGE + BEGUN + 1.5)
    assert cost.stages["prefill"].bytes == keys.size + read + IMAGE * 60 * 4 + token * (IMAGE + BEGUN)
    assert cost.cache_bytes == token * (IMAGE + BEGUN + 2) and cost.vote_comparisons == 0
    assert list(cost.stages) == ["vision", "prefill", "decode"]


def test_prompt_and_caption_share_the_positions(caption_bundle: Path) -> None:
    manifest = open_bundle(caption_bundle).manifest
    assert len(make_timed_input(manifest, 64, 1, 41, 25, seed=0).prompt_ids) == 41
    with pytest.raises(UsageError, match="42 prompt tokens and 25 new ones need 65 positions"):
        make_timed_input(manifest, 64, 1, 42, 25, seed=0)
