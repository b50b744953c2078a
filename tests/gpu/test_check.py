"""`make gpu-check` on a machine without a GPU: it says precisely what did not run, and does not pass."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from catp.runtime import Pipeline
from catp.runtime.providers import ON_HOST, PROVIDERS
from catp.runtime.providers.cuda import compute_capability

CHECK = Path(__file__).parent / "check.py"


@pytest.mark.heavy
@pytest.mark.skipif(compute_capability() is not None, reason="there is a GPU: run `make gpu-check`")
def test_without_a_gpu_it_fails_and_says_why(demo_bundle: Path, tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    command = [sys.executable, str(CHECK), "--bundle", str(demo_bundle), "--questions", "4", "-o", str(record)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "no provider ran on a GPU" in result.stderr and "Traceback" not in result.stderr
    written = json.loads(record.read_text())
    assert written["device"] is None
    runs = written["runs"]
    assert [run["provider"] for run in runs[:-1]] == [name for name in PROVIDERS if name not in ON_HOST]
    assert runs[-1]["provider"] == "tensorrt-rtx-current-device"
    assert all(run["outcome"].startswith("not available: ") for run in runs)
    assert not any("latency_ms" in run for run in runs)


@pytest.fixture(scope="module")
def check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_check", CHECK)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_provider_that_agrees_and_ones_that_do_not(check: ModuleType, pipeline: Pipeline) -> None:
    limits = check.LIMITS["fp32"]
    expected = check.answers(pipeline, 4)
    report = check.compare(expected, check.answers(pipeline, 4), limits)
    assert all(ratio["passed"] and not any(ratio["max_relative_error"].values()) for ratio in report.values())
    for name, change in (
        ("logits", lambda values: values * 1.5),
        ("kept_embeds", lambda values: values * np.nan),
        ("kept", lambda values: values[:, ::-1] * 0),
        ("tokens", lambda rows: [[*ids, 1] for ids in rows]),
        ("beams", lambda rows: [[*ids, 1] for ids in rows]),
    ):
        other = check.answers(pipeline, 4)
        for batches in other.values():
            for batch in batches:
                batch[name] = change(batch[name])
        report = check.compare(expected, other, limits)
        assert not report["0.5"]["passed"], name
    assert check.relative_error(np.ones(3), np.array([1.0, np.nan, 1.0])) is None


@pytest.mark.heavy
def test_patches_that_an_encoder_keeps_are_compared_whatever_their_order(
    check: ModuleType, twice_pruned_bundle: Path
) -> None:
    cpu = check.reference(twice_pruned_bundle)
    found, other = check.answers(cpu, 4), check.answers(cpu, 4)
    encoded = cpu.encode(cpu.preprocess([example.image for example in check.scenes.examples(4, check.SEED)]))
    turned = {name: value.numpy()[:, ::-1] for name, value in encoded.items() if name == "kept_positions"}
    embeds = encoded["image_embeds"].numpy()
    turned["image_embeds"] = np.concatenate([embeds[:, :1], embeds[:, :0:-1]], 1)
    patches, tokens = check.seen(turned)
    np.testing.assert_array_equal(patches, found[0.0][0]["patches"])
    np.testing.assert_array_equal(tokens, found[0.0][0]["image_embeds"])
    assert patches.shape[1] == tokens.shape[1] - 1 < 36
    assert check.compare(found, other, check.LIMITS["fp32"])["0.5"]["passed"]
    for batch in other[0.5]:
        batch["patches"] = batch["patches"] + 40
    report = check.compare(found, other, check.LIMITS["fp32"])["0.5"]
    assert report["equal"]["patches"] == 0 and not report["passed"]


def test_an_encoder_that_counts_for_itself_is_tried_alone(check: ModuleType, dynamic_bundle: Path) -> None:
    assert check.counts_itself(dynamic_bundle)
    run = check.run_provider(dynamic_bundle, check.CURRENT_DEVICE, 4, 1)
    assert run["outcome"].startswith("not available: ") or "max_relative_error" in run


def test_a_bf16_bundle_is_compared_with_its_emulation(check: ModuleType, bf16_bundle: Path) -> None:
    cpu = check.reference(bf16_bundle)
    found = check.answers(cpu, 4)
    report = check.compare(found, check.answers(cpu, 4), check.LIMITS["bf16"])
    assert all(ratio["passed"] for ratio in report.values())


def test_a_provider_that_breaks_is_a_failure(check: ModuleType, tmp_path: Path) -> None:
    run = check.run_provider(tmp_path / "nowhere", "cpu", 4, 1)
    assert run["outcome"].startswith("not available: ")  # no such bundle is a mistake of the call
    (tmp_path / "catp.json").write_text("{")
    assert check.run_provider(tmp_path, "cpu", 4, 1)["outcome"].startswith("failed: BundleError")


def test_every_stage_is_timed(check: ModuleType, pipeline: Pipeline) -> None:
    found = check.latency(pipeline, 3)
    assert set(found) == {"preprocess", "vision", "qformer", "prefill", "decode_per_token", "total"}
    assert all(0 < stage["p50"] <= stage["p95"] for stage in found.values())
