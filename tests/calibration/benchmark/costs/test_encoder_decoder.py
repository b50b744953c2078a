"""FLOPs and bytes of an encoder-decoder language model: a small case by hand, a real one against PyTorch's counter."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers.modeling_outputs import BaseModelOutput

from catp.calibration.benchmark.costs.base import Workload
from catp.calibration.benchmark.costs.cost import cost_of
from catp.calibration.benchmark.costs.encoder_decoder import (
    cache_bytes_per_token,
    decoder_weight_bytes,
    encoder_flops,
    encoder_weight_bytes,
    step_flops,
)
from catp.calibration.benchmark.costs.geometry import EncoderDecoderGeometry, read_geometry
from catp.export.checkpoints.loading import load_checkpoint
from catp.runtime.bundle.folder import open_bundle

LANGUAGE = EncoderDecoderGeometry(
    encoder_layers=1, decoder_layers=2, width=4, feed_forward=8, heads=3, head_width=2, vocabulary=10, gated=True
)


def test_encoder_by_hand() -> None:
    projections = 4 * (2 * 3 * 4 * 6)  # q, k, v, out of 3 tokens of width 4; heads together are 6 wide
    attention = 2 * (2 * 3 * 3 * 6)
    feed_forward = 3 * (2 * 3 * 4 * 8)
    cross = 2 * 2 * (2 * 3 * 4 * 6)  # keys and values, in both decoder layers
    assert encoder_flops(LANGUAGE, 3) == projections + attention + feed_forward + cross == 576 + 216 + 576 + 576
    plain = replace(LANGUAGE, gated=False)
    assert encoder_flops(LANGUAGE, 3) - encoder_flops(plain, 3) == 2 * 3 * 4 * 8


def test_decoder_step_by_hand() -> None:
    own = 4 * (2 * 4 * 6) + 2 * (2 * 5 * 6)  # it sees 5 tokens
    cross = 2 * (2 * 4 * 6) + 2 * (2 * 7 * 6)  # q and out; 7 encoded tokens, projected before
    feed_forward = 3 * (2 * 4 * 8)
    head = 2 * 4 * 10
    expected = 2 * (own + cross + feed_forward) + head
    assert step_flops(LANGUAGE, 5, 7) == expected == 2 * (312 + 264 + 192) + 80


def test_the_workload_decides(t5_bundle: Path) -> None:
    bundle = open_bundle(t5_bundle)
    geometry, graphs = read_geometry(bundle), bundle.manifest.graphs
    language, encoder, decoder = geometry.language, graphs["text_encoder"], graphs["text_decoder"]
    assert language == EncoderDecoderGeometry(1, 2, 36, 52, 3, 10, 384, gated=True)
    cost = cost_of(bundle.manifest, geometry, Workload(batch=2, num_kept=12, prompt_tokens=16, new_tokens=10), 0.5)
    # Keys and values of 2 layers of 3 x 10 in float32: of 28 encoded tokens, and of the start token and 9 more.
    per_token = 2 * 2 * 30 * 4
    assert cache_bytes_per_token(language, decoder) == per_token
    assert cost.cache_bytes == 2 * (28 + 10) * per_token
    prefill, decode = cost.stages["prefill"], cost.stages["decode"]
    assert prefill.flops == 2 * (encoder_flops(language, 28) + step_flops(language, 1, 28))
    assert decode.flops == 2 * step_flops(language, 6, 28)  # mean of 2 to 10
    # The encoder's table is looked up; the decoder's is its head here, and every step reads it.
    table = 384 * 36 * 4
    assert encoder_weight_bytes(language, encoder) == pytest.approx(4 * encoder.parameters - table, rel=0.01)
    assert decoder_weight_bytes(language, decoder) == pytest.approx(4 * decoder.parameters, rel=0.01)
    weights = [encoder_weight_bytes(language, encoder), decoder_weight_bytes(language, decoder)]
    assert prefill.bytes == sum(weights) + 2 * (12 * 36 * 4 + 29 * per_token)
    assert decode.bytes == weights[1] + 2 * (28 + 6) * per_token
    single = cost_of(bundle.manifest, geometry, Workload(1, 12, 16, 1), 0.5)
    assert "decode" not in single.stages and single.cache_bytes == 29 * per_token


def test_a_head_of_its_own_leaves_the_table_to_be_looked_up(t5_bundle: Path) -> None:
    bundle = open_bundle(t5_bundle)
    language, graph = read_geometry(bundle).language, bundle.manifest.graphs["text_decoder"]
    assert isinstance(language, EncoderDecoderGeometry) and graph.external_data is not None
    table = language.vocabulary * language.width
    external = graph.external_data.model_copy(update={"size": graph.external_data.size + 4 * table})
    untied = graph.model_copy(update={"parameters": graph.parameters + table, "external_data": external})
    assert decoder_weight_bytes(language, untied) == decoder_weight_bytes(language, graph)


@torch.no_grad()
def test_counts_are_those_of_pytorch(t5_checkpoint: Path, t5_bundle: Path) -> None:
    lm = load_checkpoint(str(t5_checkpoint)).model.language_model
    language = read_geometry(open_bundle(t5_bundle)).language
    assert isinstance(language, EncoderDecoderGeometry)
    prefix, start = torch.zeros(1, 11, language.width), torch.zeros(1, 1, dtype=torch.long)
    with FlopCounterMode(display=False) as prefill:
        first = lm(inputs_embeds=prefix, decoder_input_ids=start, use_cache=True)
    assert prefill.get_total_flops() == encoder_flops(language, 11) + step_flops(language, 1, 11)
    encoded = BaseModelOutput(first.encoder_last_hidden_state)
    with FlopCounterMode(display=False) as decode:
        lm(encoder_outputs=encoded, decoder_input_ids=start, cache=first.cache)
    assert decode.get_total_flops() == step_flops(language, 2, 11)
