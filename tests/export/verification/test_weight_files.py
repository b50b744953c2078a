"""Which of a folder's files are a checkpoint's weights, and what is said of those that are missing or broken."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from catp.export.checkpoints.weight_files import stored_dtype, weight_files
from catp.export.demo import CHECKPOINT
from catp.runtime import CatpError, UsageError

INDEX = "model.safetensors.index.json"
SHARDS = [f"model-0000{number}-of-00004.safetensors" for number in range(1, 5)]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Four files and their index, as save_pretrained() names them."""
    folder = tmp_path / "shards"
    folder.mkdir()
    tensors = load_file(CHECKPOINT / "model.safetensors")
    names = sorted(tensors)
    where = {name: SHARDS[place % 4] for place, name in enumerate(names)}
    for shard in SHARDS:
        save_file({name: tensors[name] for name in names if where[name] == shard}, folder / shard)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


def refusal(folder: Path, error: type[CatpError] = UsageError) -> str:
    with pytest.raises(CatpError) as caught:
        weight_files(str(folder))
    assert type(caught.value) is error
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
    return str(caught.value)


def test_what_the_index_names_is_read_and_nothing_else(shards: Path) -> None:
    (shards / "model-of-yesterday.safetensors").write_text("x")
    (shards / "model.fp16.safetensors").write_text("x")
    files = weight_files(str(shards))
    assert [path.name for path in files] == SHARDS and stored_dtype(files) == torch.float16
    # Where both are there, transformers reads the whole one.
    shutil.copy(CHECKPOINT / "model.safetensors", shards)
    assert [path.name for path in weight_files(str(shards))] == ["model.safetensors"]


@pytest.mark.parametrize("gone", [SHARDS[1:2], SHARDS[2:], SHARDS])
def test_missing_files_are_named(shards: Path, gone: list[str]) -> None:
    for name in gone:
        (shards / name).unlink()
    message = refusal(shards)
    assert ", ".join(gone[:3]) in message and "of the 4 files that model.safetensors.index.json names" in message
    assert ("is missing" in message) == (len(gone) == 1) and ("and 1 more" in message) == (len(gone) == 4)
    assert "pickle" not in message


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": []}', '{"weight_map": {"a": 1}}', "[" * 5000]
)
def test_a_broken_index_is_named(shards: Path, content: str) -> None:
    (shards / INDEX).write_text(content)
    assert f"{INDEX} is broken" in refusal(shards, CatpError)


def test_files_under_other_names(shards: Path) -> None:
    (shards / INDEX).unlink()
    message = refusal(shards)
    assert ", ".join(SHARDS[:3]) + " and 1 more" in message and "fetch the index too" in message
    for name in SHARDS[1:]:
        (shards / name).unlink()
    (shards / SHARDS[0]).rename(shards / "model.bf16.safetensors")
    assert "model.bf16.safetensors; where these are the weights" in refusal(shards)


def test_pickled_weights_beside_no_others(shards: Path) -> None:
    for path in shards.iterdir():
        path.unlink()
    assert "no *.safetensors weights" in refusal(shards)
    (shards / "pytorch_model-00001-of-00002.bin").write_bytes(b"x")
    assert "pickled" in refusal(shards) and "save_pretrained" in refusal(shards)


def test_a_broken_file_is_named(shards: Path) -> None:
    path = shards / SHARDS[2]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CatpError, match=f"{SHARDS[2]}: the file is broken"):
        stored_dtype(weight_files(str(shards)))
