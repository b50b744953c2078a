"""The estimate of memory: buffers as they are allocated, files as they lie there."""

from pathlib import Path

import pytest

from catp.runtime import Pipeline, UsageError
from catp.runtime.bundle.folder import open_bundle
from catp.runtime.bundle.footprint import Footprint, cache_bytes, check_memory, estimate
from catp.runtime.bundle.manifest import Quantization
from catp.runtime.language_models.decoder_only import DecoderOnly
from catp.runtime.language_models.kv_cache import Cache
from catp.runtime.limits import PROGRAM_BYTES


@pytest.mark.parametrize(("rows", "slots"), [(1, 32), (3, 96)])
def test_the_cache_is_what_is_allocated(demo_bundle: Path, rows: int, slots: int) -> None:
    model = Pipeline.load(demo_bundle, threads=1).language_model
    assert isinstance(model, DecoderOnly)
    cache = Cache(model.engine, model.graph, rows, slots)
    allocated = sum(buffer.numpy().nbytes for buffer in cache.inputs.values())
    assert cache_bytes(model.graph, rows, slots) == allocated > 0
    assert estimate(open_bundle(demo_bundle).manifest, rows, slots - 31, widens_half=True).cache == allocated


def test_weights_are_the_files_of_the_graphs(demo_bundle: Path) -> None:
    files = sum(path.stat().st_size for path in demo_bundle.glob("*.onnx*"))
    found = estimate(open_bundle(demo_bundle).manifest, 1, 64, widens_half=True)
    assert found.weights == files and found.total == files + found.cache + PROGRAM_BYTES


def test_half_precision_counts_twice_where_it_is_computed_in_single(demo_bundle: Path) -> None:
    manifest = open_bundle(demo_bundle).manifest
    graphs = dict(manifest.graphs)
    vision = graphs["vision_encoder"]
    graphs["vision_encoder"] = vision.model_copy(update={"precision": "fp16"})
    half = manifest.model_copy(update={"graphs": graphs})
    plain = estimate(manifest, 1, 64, widens_half=True).weights
    assert estimate(half, 1, 64, widens_half=True).weights == plain + vision.bytes
    assert estimate(half, 1, 64, widens_half=False).weights == plain
    quantised = Quantization(format="int4", purpose="cpu", activations="float", layers=1, bytes_before=1, bytes_after=1)
    graphs["vision_encoder"] = vision.model_copy(update={"precision": "fp16", "quantization": quantised})
    half = manifest.model_copy(update={"graphs": graphs})
    assert estimate(half, 1, 64, widens_half=True).weights == plain


def test_the_message_says_what_takes_it() -> None:
    needed = Footprint(weights=15_000_000_000, cache=20_000_000)
    check_memory("bundle b", needed, None)
    check_memory("bundle b", needed, 15.12)
    with pytest.raises(UsageError, match=r"15\.12 GB \(weights 15\.00, cache 0\.020, program 0\.10\).*is 15\.1;"):
        check_memory("bundle b", needed, 15.1)
