"""The cost of question encoder and answer decoder against the operations that PyTorch counts."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BlipForQuestionAnswering, DynamicCache, EncoderDecoderCache

from catp.calibration.benchmark.costs.answering import encoder_flops, step_flops
from catp.calibration.benchmark.costs.base import Workload
from catp.calibration.benchmark.costs.cost import cost_of, vision_flops
from catp.calibration.benchmark.costs.geometry import AnsweringGeometry, read_geometry
from catp.runtime.bundle.folder import open_bundle

QUESTION, IMAGE = 11, 50


@torch.no_grad()
def test_operations_are_those_of_the_checkpoint(vqa_bundle: Path, vqa_checkpoint: Path) -> None:
    model = BlipForQuestionAnswering.from_pretrained(vqa_checkpoint, attn_implementation="eager").eval()
    geometry = read_geometry(open_bundle(vqa_bundle))
    language = geometry.language
    assert isinstance(language, AnsweringGeometry) and geometry.qformer is None
    with FlopCounterMode(display=False) as counted:
        embeds = model.vision_model(torch.zeros(1, 3, 56, 56)).last_hidden_state
    assert vision_flops(geometry.vision) == counted.get_total_flops()
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    with FlopCounterMode(display=False) as counted:
        ids = torch.ones(1, QUESTION, dtype=torch.long)
        hidden = model.text_encoder(ids, encoder_hidden_states=embeds).last_hidden_state
        model.text_decoder(ids[:, :1], encoder_hidden_states=hidden, cache=cache, use_cache=True)
    first = encoder_flops(language, QUESTION, IMAGE, 60) + step_flops(language, 1, QUESTION)
    assert first == counted.get_total_flops()
    with FlopCounterMode(display=False) as counted:
        model.text_decoder(ids[:, :1], encoder_hidden_states=hidden, cache=cache, use_cache=True)
    assert step_flops(language, 2, QUESTION) == counted.get_total_flops()


def test_weights_that_are_looked_up_are_not_read(vqa_bundle: Path) -> None:
    bundle = open_bundle(vqa_bundle)
    workload = Workload(1, IMAGE, QUESTION, new_tokens=3)
    cost = cost_of(bundle.manifest, read_geometry(bundle), workload, 0.0)
    decoder = bundle.manifest.graphs["answer_decoder"]
    assert decoder.external_data is not None
    cache = (
        2 * 3 * 60 * 4 * (QUESTION + 2.5)
    )  # keys and values of 3 layers, of the question and of two tokens and a half
    assert cost.stages["decode"].bytes == decoder.external_data.size - 64 * 60 * 4 + cache  # less 64 positions
    assert list(cost.stages) == ["vision", "prefill", "decode"] and cost.vote_comparisons == 0
