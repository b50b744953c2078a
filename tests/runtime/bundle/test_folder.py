"""A bundle is what its manifest says, or it is refused by name."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
from bundles import edit_manifest, relist

from catp.export.demo import samples
from catp.runtime import BundleError, CatpError, Pipeline, UsageError
from catp.runtime.bundle.folder import open_bundle, write_manifest
from catp.runtime.files import sha256


@pytest.fixture
def copy(demo_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))


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
    ("tensor", "change", "message"),
    [
        # What the runtime could not drive, whatever the graph has.
        (-1, {"dtype": "float17"}, "past_key_values.1.value is 'float17', not float32 or float16"),
        (-1, {"shape": ["batch", "two", 3, 4]}, "a dimension is 'two', which should be a number"),
        (-1, {"shape": ["batch", 4, "max_length"]}, "has 3 dimensions, not 4"),
        (-1, {"name": "other"}, "'other' is nothing that the runtime has"),
        (-1, {"shape": ["batch", 2, "max_length", 64]}, "no output of the same shape"),
        (0, {"name": "past_key_values.1.value"}, "input"),
        # What the graph does not have.
        (1, {"shape": ["batch", "num_kept", 127]}, r"describes other tensors than language_model\.onnx"),
    ],
    ids=str,
)
def test_a_manifest_that_describes_other_tensors_is_refused(
    copy: Path, tensor: int, change: dict[str, Any], message: str
) -> None:
    manifest = json.loads((copy / "catp.json").read_text())
    manifest["graphs"]["language_model"]["inputs"][tensor].update(change)
    edit_manifest(copy, graphs=manifest["graphs"])
    with pytest.raises(BundleError, match=message):
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
    with pytest.raises(
        BundleError, match=r"vision_encoder\.onnx has weights in the file '../vision_encoder\.onnx_data'"
    ):
        Pipeline.load(copy)


def hub_cache(bundle: Path, root: Path, repository: str = "models--me--bundle") -> Path:
    """As huggingface_hub's snapshot_download leaves it: links to blobs."""
    (blobs := root / repository / "blobs").mkdir(parents=True)
    (snapshot := root / repository / "snapshots" / "0123abc").mkdir(parents=True)
    for path in bundle.iterdir():
        name = sha256(path)
        shutil.copy(path, blobs / name)
        (snapshot / path.name).symlink_to(f"../../blobs/{name}")
    return snapshot


def test_a_bundle_in_the_cache_of_the_hub_answers_as_it_does_elsewhere(
    demo_bundle: Path, pipeline: Pipeline, tmp_path: Path
) -> None:
    snapshot = hub_cache(demo_bundle, tmp_path)
    sample = samples()[2]
    found = Pipeline.load(snapshot).generate([sample.image], [sample.prompt])[0]
    assert found.token_ids == pipeline.generate([sample.image], [sample.prompt])[0].token_ids
    (tmp_path / "link").symlink_to(snapshot)
    open_bundle(tmp_path / "link")
    nested = tmp_path / "nested"  # a bundle in a folder of its repository
    inner = hub_cache(demo_bundle, nested)
    (inner / "bundle").mkdir()
    for path in [path for path in inner.iterdir() if path.is_symlink()]:
        (inner / "bundle" / path.name).symlink_to(Path("..") / path.readlink())
    open_bundle(inner / "bundle")


@pytest.mark.parametrize("where", ["elsewhere/blobs", "models--me--bundle/blobs/deeper", "models--me--other/blobs"])
def test_links_out_of_a_cached_bundle_to_anything_but_its_blobs_are_refused(
    demo_bundle: Path, tmp_path: Path, where: str
) -> None:
    snapshot = hub_cache(demo_bundle, tmp_path)
    (target := tmp_path / where).mkdir(parents=True, exist_ok=True)
    shutil.copy(demo_bundle / "tokenizer.json", target / "x")
    (snapshot / "tokenizer.json").unlink()
    (snapshot / "tokenizer.json").symlink_to(target / "x")
    with pytest.raises(BundleError, match=r"tokenizer\.json points outside the bundle"):
        open_bundle(snapshot)


def test_a_folder_that_only_looks_like_the_cache_is_none(demo_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="points outside the bundle"):
        open_bundle(hub_cache(demo_bundle, tmp_path, "someone"))


def test_an_entry_that_can_not_be_read_is_named(copy: Path) -> None:
    manifest = json.loads((copy / "catp.json").read_text())
    (entry,) = [file for file in manifest["files"] if file["path"] == "config.json"]
    entry["path"] = "c" * 300  # more than a file system takes
    edit_manifest(copy, files=manifest["files"])
    with pytest.raises(BundleError, match="ccc can't be read \\(File name too long\\)"):
        open_bundle(copy)
    entry["path"] = "c/" * 5000 + "c"
    edit_manifest(copy, files=manifest["files"])
    with pytest.raises(BundleError, match="no path of a file that catp-export writes"):
        open_bundle(copy)
    entry["path"] = "config.json/x"
    edit_manifest(copy, files=manifest["files"])
    with pytest.raises(BundleError, match=r"config\.json/x is missing"):
        open_bundle(copy)


@pytest.mark.parametrize("location", ["weights.bin", "sub/weights.bin"])
def test_every_byte_that_a_session_reads_is_listed(copy: Path, location: str) -> None:
    """Under a name that the search for unlisted files does not know."""
    (copy / location).parent.mkdir(exist_ok=True)
    shutil.move(copy / "vision_encoder.onnx_data", copy / location)
    model = onnx.load(copy / "vision_encoder.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    onnx.save(model, copy / "vision_encoder.onnx")
    manifest = json.loads((copy / "catp.json").read_text())
    manifest["graphs"]["vision_encoder"]["external_data"] = None
    edit_manifest(copy, graphs=manifest["graphs"])
    relist(copy)
    with pytest.raises(BundleError, match=f"weights in the file '{location}'"):
        open_bundle(copy)


@pytest.mark.parametrize(
    ("part", "name", "value", "message"),
    [
        ("text", "max_positions", 1 << 40, "max_positions"),
        ("text", "pad_token_id", -1, "pad_token_id"),
        ("text", "pad_token_id", 384, "pad_token_id: 384, and the language model knows 384 tokens"),
        ("text", "max_new_tokens", 10**30, "max_new_tokens"),
        ("text", "prompt_template", "{prompt}" * 100_000, "prompt_template"),
        ("text", "prompt_template", "{prompt}\ud800", "surrogates"),
        ("pruning", "num_query_tokens", 1 << 40, "num_query_tokens"),
        ("pruning", "ratio", float("nan"), "pruning.ratio"),
        ("pruning", "keep_mass", float("inf"), "pruning.keep_mass"),
        ("generation", "num_beams", 10**9, "num_beams"),
        ("generation", "no_repeat_ngram_size", 10**12, "no_repeat_ngram_size"),
        ("generation", "stop_strings", ["x" * 200_000], "stop_strings"),
        ("generation", "stop_strings", ["x"] * 2000, "stop_strings"),
        ("model", "frames", 10**9, "frames"),
    ],
)
def test_numbers_beyond_all_models_are_refused_by_name(
    copy: Path, part: str, name: str, value: Any, message: str
) -> None:
    manifest = json.loads((copy / "catp.json").read_text())
    edit_manifest(copy, **{part: manifest[part] | {name: value}})
    with pytest.raises(BundleError, match=message):
        open_bundle(copy)


def test_a_huge_image_is_refused_though_the_graph_takes_it(copy: Path) -> None:
    manifest = json.loads((copy / "catp.json").read_text())
    manifest["graphs"]["vision_encoder"]["inputs"][0]["shape"][2:] = [60_000, 60_000]
    image = manifest["image"] | {"height": 60_000, "width": 60_000}
    edit_manifest(copy, image=image, graphs=manifest["graphs"])
    with pytest.raises(BundleError, match="60000 x 60000 pixels, at most 4096 a side"):
        open_bundle(copy)


def test_a_graph_of_another_name_is_refused(copy: Path) -> None:
    """catp-build would write a plan of that name."""
    manifest = json.loads((copy / "catp.json").read_text())
    graphs = manifest["graphs"]
    edit_manifest(copy, graphs=graphs | {"../../evil": graphs["vision_encoder"]})
    with pytest.raises(BundleError, match=r"'\.\./\.\./evil' is none of a decoder-only model's"):
        open_bundle(copy)


def test_a_manifest_of_any_size_is_not_read(copy: Path) -> None:
    with (copy / "catp.json").open("r+b") as file:
        file.truncate(1 << 36)  # a hole
    with pytest.raises(BundleError, match="more than 16,777,216 bytes"):
        open_bundle(copy)


def test_a_name_that_is_no_text_is_refused(copy: Path) -> None:
    renamed = copy.rename(copy.parent / os.fsdecode(b"b\xff"))
    with pytest.raises(UsageError, match="not valid UTF-8"):
        open_bundle(renamed)


def test_a_manifest_is_not_written_over_another_one(copy: Path) -> None:
    old = open_bundle(copy).manifest
    new = old.model_copy(update={"vote": old.pruning.model_copy(update={"ratio": 0.75})})
    write_manifest(copy, new, replaces=old)
    with pytest.raises(BundleError, match="somebody else has changed it"):
        write_manifest(copy, old, replaces=old)
    assert open_bundle(copy).manifest == new
    assert not list(copy.glob(".catp*"))


def test_what_is_no_bundle_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        open_bundle(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"has no catp\.json"):
        open_bundle(tmp_path)


def test_errors_know_their_exit_code() -> None:
    assert UsageError.exit_code == 2
    assert CatpError.exit_code == BundleError.exit_code == 1
