"""A bundle is what its manifest says, or it is refused by name."""

import json
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest

from catp.runtime import BundleError, CatpError, Pipeline, UsageError
from catp.runtime.bundle.folder import open_bundle
from catp.runtime.files import sha256


@pytest.fixture
def copy(demo_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))


def edit_manifest(bundle: Path, **changes: Any) -> None:
    path = bundle / "catp.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_sound_bundle_opens(copy: Path) -> None:
    manifest = open_bundle(copy).manifest
    assert manifest.pruning.num_query_tokens == 32
    assert all(check.passed for check in manifest.parity) and len(manifest.parity) >= 8


@pytest.mark.parametrize("name", ["vision_encoder.onnx", "language_model.onnx_data", "tokenizer.json"])
def test_an_edited_file_is_named(copy: Path, name: str) -> None:
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(BundleError, match=f"{name} was altered"):
        open_bundle(copy)


def test_a_truncated_file_is_named_even_without_hashing(copy: Path) -> None:
    path = copy / "qformer_voting.onnx_data"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BundleError, match=r"qformer_voting\.onnx_data has"):
        open_bundle(copy, verify=False)


def test_a_missing_file_is_named(copy: Path) -> None:
    (copy / "language_model.onnx").unlink()
    with pytest.raises(BundleError, match=r"language_model\.onnx is missing"):
        open_bundle(copy)


def test_a_newer_schema_says_upgrade(copy: Path) -> None:
    edit_manifest(copy, schema_version=2)
    with pytest.raises(BundleError, match="schema version 2 is newer"):
        open_bundle(copy)


@pytest.mark.parametrize("content", ["{", "[]", "null", '{"schema_version": 1}', "[" * 100_000])
def test_a_broken_manifest_is_one_clear_line(copy: Path, content: str) -> None:
    (copy / "catp.json").write_text(content)
    with pytest.raises(BundleError, match=r"catp\.json") as caught:
        open_bundle(copy)
    assert "\n" not in str(caught.value)


def test_a_manifest_that_contradicts_itself_is_refused(copy: Path) -> None:
    manifest = json.loads((copy / "catp.json").read_text())
    changes: list[tuple[str, dict[str, Any]]] = [
        ("not the size that the vision encoder takes", {"image": manifest["image"] | {"height": 48}}),
        ("not the number that the Q-Former", {"pruning": manifest["pruning"] | {"num_query_tokens": 64}}),
        ("tokenizer.json missing", {"files": [f for f in manifest["files"] if f["path"] != "tokenizer.json"]}),
    ]
    for message, change in changes:
        (copy / "catp.json").write_text(json.dumps(manifest | change))
        with pytest.raises(BundleError, match=message):
            open_bundle(copy)


@pytest.mark.parametrize(
    "change", [{"dtype": "float17"}, {"shape": ["batch", "two", 3, 4]}, {"name": "other"}], ids=str
)
def test_a_manifest_that_describes_other_tensors_is_refused(copy: Path, change: dict[str, Any]) -> None:
    manifest = json.loads((copy / "catp.json").read_text())
    manifest["graphs"]["language_model"]["inputs"][-1].update(change)
    edit_manifest(copy, graphs=manifest["graphs"])
    with pytest.raises(BundleError, match=r"describes other tensors than language_model\.onnx"):
        Pipeline.load(copy)


def test_weights_that_no_hash_vouches_for_are_refused(copy: Path) -> None:
    manifest = json.loads((copy / "catp.json").read_text())
    manifest["graphs"]["vision_encoder"]["external_data"] = None
    edit_manifest(copy, graphs=manifest["graphs"])
    with pytest.raises(BundleError, match=r"vision_encoder\.onnx_data is not in its manifest"):
        open_bundle(copy)


@pytest.mark.parametrize("path", ["../secret.json", "/etc/passwd", "a/../../b", ""])
def test_a_path_outside_the_bundle_is_refused(copy: Path, path: str) -> None:
    manifest = json.loads((copy / "catp.json").read_text())
    manifest["files"][0]["path"] = path
    edit_manifest(copy, files=manifest["files"])
    with pytest.raises(BundleError, match="not a path inside the bundle"):
        open_bundle(copy)


def test_a_link_out_of_the_bundle_is_refused(copy: Path, tmp_path: Path) -> None:
    target = copy / "tokenizer.json"
    shutil.move(target, tmp_path / "elsewhere.json")
    target.symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(BundleError, match="points outside the bundle"):
        open_bundle(copy)


def test_external_data_outside_the_bundle_is_refused(copy: Path, tmp_path: Path) -> None:
    # Somebody who edits the graph can also edit its hash: the graph itself must not reach out.
    shutil.move(copy / "vision_encoder.onnx_data", tmp_path / "vision_encoder.onnx_data")
    model = onnx.load(copy / "vision_encoder.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../vision_encoder.onnx_data"
    onnx.save(model, copy / "vision_encoder.onnx")
    manifest = json.loads((copy / "catp.json").read_text())
    graph = manifest["graphs"]["vision_encoder"]
    graph["external_data"] = None
    path = copy / "vision_encoder.onnx"
    graph["file"] = {"path": path.name, "size": path.stat().st_size, "sha256": sha256(path)}
    edit_manifest(copy, graphs=manifest["graphs"])
    with pytest.raises(BundleError, match=r"can't load vision_encoder\.onnx"):
        Pipeline.load(copy)


def test_what_is_no_bundle_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        open_bundle(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"has no catp\.json"):
        open_bundle(tmp_path)


def test_errors_know_their_exit_code() -> None:
    assert UsageError.exit_code == 2
    assert CatpError.exit_code == BundleError.exit_code == 1
