"""FLOPs and bytes: small cases by hand, real ones against PyTorch's own counter."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from catp.calibration.benchmark.costs.base import StageCost, Workload
from catp.calibration.benchmark.costs.cost import (
    cache_bytes_per_token,
    cost_of,
    language_flops,
    language_weight_bytes,
    qformer_flops,
    vision_flops,
)
from catp.calibration.benchmark.costs.geometry import (
    LanguageGeometry,
    QFormerGeometry,
    VisionGeometry,
    read_geometry,
)
from catp.calibration.benchmark.rates import Rates, best_rates
from catp.calibration.benchmark.schedules import find_schedules
from catp.export.checkpoints.loading import Checkpoint, load_checkpoint
from catp.runtime.bundle.folder import Bundle, open_bundle
from catp.runtime.bundle.manifest import Quantization
from catp.runtime.errors import BundleError

VISION = VisionGeometry(layers=1, width=2, feed_forward=3, patch=2, patches=4)
QFORMER = QFormerGeometry(layers=2, width=2, feed_forward=3, heads=1, queries=4, cross_every=2)
LANGUAGE = LanguageGeometry(
    layers=2, width=4, feed_forward=8, heads=2, key_value_heads=1, head_width=2, vocabulary=10, gated=False, tied=True,
    positions=0,
)  # fmt: skip


def test_vision_by_hand() -> None:
    patches = 2 * 4 * 12 * 2  # 4 patches of 3 x 2 x 2 values to width 2
    projections = 4 * (2 * 5 * 2 * 2)  # q, k, v, out of 5 tokens
    attention = 2 * (2 * 5 * 5 * 2)
    feed_forward = 2 * (2 * 5 * 2 * 3)
    assert vision_flops(VISION) == patches + projections + attention + feed_forward == 192 + 160 + 200 + 120


def test_qformer_by_hand() -> None:
    own = 4 * (2 * 4 * 2 * 2) + 2 * (2 * 4 * 4 * 2)  # 128 + 128
    cross = (
        2 * (2 * 4 * 2 * 2) + 2 * (2 * 5 * 2 * 2) + 2 * (2 * 4 * 5 * 2)
    )  # queries and out, keys and values, attention
    feed_forward = 2 * (2 * 4 * 2 * 3)
    # Two layers of which one reads the image; the first layer's own attention and its queries are constants.
    expected = 2 * (own + feed_forward) + cross - own - 2 * 4 * 2 * 2 + 2 * 3 * 2 * 4
    assert qformer_flops(QFORMER, VISION, kept=3, language_width=4) == expected == 256 + 192 + 304 - 32 + 48
    assert QFORMER.cross_layers == 1
    # Of 5 image tokens an encoder that prunes leaves 2: keys, values and attention of 3 fewer.
    fewer = 2 * (2 * 3 * 2 * 2) + 2 * (2 * 4 * 3 * 2)
    assert qformer_flops(QFORMER, VISION, kept=3, language_width=4, seen=2) == expected - fewer


def test_language_model_by_hand() -> None:
    projections = 2 * 3 * 4 * (4 + 2 + 2 + 4)  # q, k, v, out of 3 tokens; one key-value head of two
    attention = 2 * (2 * 3 * 5 * 4)
    feed_forward = 2 * (2 * 3 * 4 * 8)
    head = 2 * 4 * 10  # of one token, not of three
    assert language_flops(LANGUAGE, 3, 5) == 2 * (projections + attention + feed_forward) + head == 2 * 912 + 80
    gated = LanguageGeometry(**{**vars(LANGUAGE), "gated": True})
    assert language_flops(gated, 3, 5) - language_flops(LANGUAGE, 3, 5) == 2 * 2 * 3 * 4 * 8


def test_the_workload_decides(demo_bundle: Path) -> None:
    manifest = open_bundle(demo_bundle).manifest
    geometry = read_geometry(open_bundle(demo_bundle))
    cost = cost_of(manifest, geometry, Workload(batch=2, num_kept=16, prompt_tokens=16, new_tokens=10), 0.5)
    # Keys and values of 2 layers of 128 in float32, for 16 + 16 + 9 slots: the last token is never written.
    per_token = 2 * 2 * 128 * 4
    assert cache_bytes_per_token(geometry.language, manifest.graphs["language_model"]) == per_token
    assert cost.cache_bytes == 2 * (16 + 16 + 9) * per_token
    assert cost.stages["prefill"].flops == 2 * language_flops(geometry.language, 32, 32)
    assert cost.stages["decode"].flops == 2 * language_flops(geometry.language, 1, 37)  # mean of 33 to 41
    assert cost.vote_comparisons == 2 * 2 * 4 * 37 * (32 * 31 // 2)  # images, layers, heads, tokens, pairs
    external = manifest.graphs["language_model"].external_data
    weights = language_weight_bytes(geometry.language, manifest.graphs["language_model"])
    assert external is not None and external.size - weights == pytest.approx(258 * 128 * 4, rel=0.01)
    assert cost.stages["decode"].bytes == weights + 2 * 37 * per_token
    single = cost_of(manifest, geometry, Workload(1, 16, 16, 1), 0.5)
    assert "decode" not in single.stages


@pytest.mark.heavy
def test_a_schedule_decides_the_work_of_what_reads_image_tokens(twice_pruned_bundle: Path) -> None:
    bundle = open_bundle(twice_pruned_bundle)
    geometry, workload = read_geometry(bundle), Workload(batch=2, num_kept=16, prompt_tokens=16, new_tokens=10)
    schedules = find_schedules({"x": bundle}, (0.8, 0.5))["x"]
    most, least = (cost_of(bundle.manifest, geometry, workload, 0.5, schedule) for schedule in schedules)
    assert most.stages == cost_of(bundle.manifest, geometry, workload, 0.5).stages  # what the bundle was exported with
    assert (most.encoder_flops, least.encoder_flops) == (0.8, 0.5)
    assert least.stages["vision"].flops == pytest.approx(2e9 * schedules[1].gflops, abs=1)
    left, qformer = [schedule.left for schedule in schedules], geometry.qformer
    assert qformer is not None and left[0] > left[1]
    seen = [qformer_flops(qformer, replace(geometry.vision, patches=n - 1), 16, 128) for n in left]
    assert [cost.stages["qformer"].flops for cost in (most, least)] == [2 * flops for flops in seen]
    assert most.vote_comparisons * left[1] == least.vote_comparisons * left[0]
    assert most.stages["prefill"] == least.stages["prefill"]


@pytest.mark.parametrize("own_head", [True, False], ids=["head quantised", "head kept"])
def test_quantised_weights_count_as_they_are_on_disk(demo_bundle: Path, own_head: bool) -> None:
    manifest = open_bundle(demo_bundle).manifest
    geometry = read_geometry(open_bundle(demo_bundle))
    language, graph = geometry.language, manifest.graphs["language_model"]
    external = graph.external_data
    assert external is not None and language.tied
    # A byte for every weight of a layer, and a scale for every column; the head is also the table of embeddings, which
    # stays as it is: quantised, it is there twice.
    table = 4 * language.vocabulary * language.width
    layers = language.layers * (4 * language.width**2 + 2 * language.width * language.feed_forward)
    before = 4 * layers + own_head * table
    after = layers + 4 * 100 + own_head * table // 4
    size = external.size - before + after + own_head * table
    quantization = Quantization(
        format="int8", purpose="cpu", activations="dynamic", layers=12, bytes_before=before, bytes_after=after
    )
    quantised = graph.model_copy(
        update={"quantization": quantization, "external_data": external.model_copy(update={"size": size})}
    )
    saved = language_weight_bytes(language, graph) - language_weight_bytes(language, quantised)
    assert saved == before - after
    graphs = {**manifest.graphs, "language_model": quantised}
    workload = Workload(batch=1, num_kept=16, prompt_tokens=16, new_tokens=10)
    costs = [cost_of(m, geometry, workload, 0.5) for m in (manifest, manifest.model_copy(update={"graphs": graphs}))]
    assert costs[0].stages["decode"].bytes - costs[1].stages["decode"].bytes == saved
    assert costs[0].stages["decode"].flops == costs[1].stages["decode"].flops
    assert [cost.stages["decode"].integer for cost in costs] == [False, True] and not costs[1].stages["vision"].integer


def test_the_least_time_is_the_larger_of_two() -> None:
    cost = StageCost(flops=2_000_000, bytes=1_000_000)
    assert cost.fastest_ms(1e9, 1e9) == 2 and cost.fastest_ms(1e9, 1e8) == 10
    rates = Rates(threads=1, gflops=1, int8_gops=4, read_gbytes=100, copy_gbytes=50)
    integer = cost.model_copy(update={"integer": True})
    assert (rates.least_ms(cost), rates.least_ms(integer)) == (2, 0.5)
    unknown = rates.model_copy(update={"int8_gops": None})
    assert unknown.least_ms(integer) == 2
    assert best_rates([unknown, rates, rates.model_copy(update={"gflops": 3, "read_gbytes": 2})]) == Rates(
        threads=1, gflops=3, int8_gops=4, read_gbytes=100, copy_gbytes=50
    )


@pytest.fixture(params=["demo", "odd"])
def model(
    request: pytest.FixtureRequest, demo_bundle: Path, demo_checkpoint: Checkpoint, odd_checkpoint: Path
) -> tuple[Checkpoint, Bundle]:
    bundle = open_bundle(demo_bundle)
    if request.param == "demo":
        return demo_checkpoint, bundle
    # No export is needed to know its sizes: 56 x 56 pixels, 24 queries.
    image = bundle.manifest.image.model_copy(update={"height": 56, "width": 56})
    pruning = bundle.manifest.pruning.model_copy(update={"num_query_tokens": 24})
    manifest = bundle.manifest.model_copy(update={"image": image, "vote": pruning})
    return load_checkpoint(str(odd_checkpoint)), Bundle(odd_checkpoint, manifest)


@torch.no_grad()
def test_counts_are_those_of_pytorch(model: tuple[Checkpoint, Bundle]) -> None:
    checkpoint, bundle = model
    geometry = read_geometry(bundle)
    module = checkpoint.model
    vision, qformer, language = geometry.vision, geometry.qformer, geometry.language
    image = bundle.manifest.image

    def count(call) -> int:  # type: ignore[no-untyped-def]
        with FlopCounterMode(display=False) as counter:
            call()
        return counter.get_total_flops()

    assert count(lambda: module.vision_model(torch.zeros(1, 3, image.height, image.width))) == vision_flops(vision)
    embeds = torch.zeros(1, vision.tokens, vision.width)
    full = count(lambda: module.qformer(query_embeds=module.query_tokens, encoder_hidden_states=embeds))
    square = 2 * qformer.queries * qformer.width**2
    folded = 5 * square + 4 * qformer.queries**2 * qformer.width
    projection = 2 * 7 * qformer.width * language.width
    assert full - folded + projection == qformer_flops(qformer, vision, 7, language.width)
    lm = module.language_model
    prefix = torch.zeros(1, 11, language.width)
    counted = count(lambda: lm(inputs_embeds=prefix, logits_to_keep=1))
    assert counted == language_flops(language, 11, 11)


@torch.no_grad()
def test_a_prompt_that_the_q_former_reads_is_counted(instructblip_bundle: Path, instructblip_checkpoint: Path) -> None:
    bundle, module = open_bundle(instructblip_bundle), load_checkpoint(str(instructblip_checkpoint)).model
    geometry, words = read_geometry(bundle), torch.ones(1, 9, dtype=torch.long)
    vision, qformer = geometry.vision, geometry.qformer
    assert qformer is not None and isinstance(geometry.language, LanguageGeometry)
    with FlopCounterMode(display=False) as counter:
        module.qformer(
            input_ids=words,
            attention_mask=torch.ones(1, qformer.queries + 9),
            query_embeds=module.query_tokens,
            encoder_hidden_states=torch.zeros(1, vision.tokens, vision.width),
        )
    projection = 2 * 7 * qformer.width * geometry.language.width
    assert counter.get_total_flops() + projection == qformer_flops(qformer, vision, 7, geometry.language.width, None, 9)
    cost = cost_of(bundle.manifest, geometry, Workload(batch=1, num_kept=7, prompt_tokens=9, new_tokens=2), 0.7)
    assert cost.stages["qformer"].flops == counter.get_total_flops() + projection
    # Tables of words and positions are looked up, not read: 64 and 512 rows of 48.
    graph = bundle.manifest.graphs["qformer_voting"]
    assert graph.external_data is not None
    moved = 4 * (vision.tokens * vision.width + 7 * geometry.language.width)
    assert cost.stages["qformer"].bytes == graph.external_data.size - 4 * (64 + 512) * 48 + moved


def test_what_has_no_geometry_is_refused(demo_bundle: Path, tmp_path: Path) -> None:
    manifest = open_bundle(demo_bundle).manifest
    with pytest.raises(BundleError, match="can't be read"):
        read_geometry(Bundle(tmp_path, manifest))
    (tmp_path / "config.json").write_text('{"vision_config": {}}')
    with pytest.raises(BundleError, match="no 'patch_size' as BLIP-2, BLIP or CLIP has"):
        read_geometry(Bundle(tmp_path, manifest))
