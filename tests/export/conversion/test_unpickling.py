"""Files that are no checkpoint: no code of theirs runs, and what they do to a process ends with it."""

import os
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from catp.export.conversion import unpickling_process
from catp.export.conversion.unpickling import unpickle
from catp.runtime import CatpError, UsageError

SMALL = {"model": {"weight": torch.arange(4.0)}, "epoch": 1, "temperature": 0.5}


class Calls:
    """An object whose pickle calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def refusal(folder: Path, content: object, error: type[CatpError] = UsageError) -> str:
    """The one line; bytes are written as they are."""
    path, raw = folder / "checkpoint.pth", folder / "raw"
    raw.mkdir()
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(CatpError) as caught:
        unpickle(path, raw)
    assert type(caught.value) is error and "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


def saved(folder: Path, content: object = SMALL) -> bytes:
    torch.save(content, folder / "saved")
    data = (folder / "saved").read_bytes()
    (folder / "saved").unlink()
    return data


@pytest.mark.usefixtures("in_process")
def test_a_tensor_of_two_names_is_one(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    base = torch.arange(6.0).view(2, 3)
    weights = {"a": base, "b": base, "turned": base.T, "row": base[1]}
    torch.save({"model": weights, "temperature": torch.tensor(0.5)}, tmp_path / "c.pth")
    (tmp_path / "raw").mkdir()
    found = unpickle(tmp_path / "c.pth", tmp_path / "raw")
    stored = load_file(found.tensors)
    assert found.aliases == {"b": "a"} and found.temperature == 0.5 and set(stored) == {"a", "turned", "row"}
    for name, value in stored.items():
        assert torch.equal(value, weights[name])


def test_code_is_not_run(tmp_path: Path) -> None:
    made = tmp_path / "made"
    message = refusal(tmp_path, {**SMALL, "epoch": Calls(os.mkdir, str(made))})
    assert "its pickle calls code (posix.mkdir), which is never run" in message and not made.exists()
    torch.load(tmp_path / "checkpoint.pth", weights_only=False)
    assert made.exists()  # so the file does have code


@pytest.mark.usefixtures("in_process")
def test_code_of_a_plain_pickle_is_not_run(tmp_path: Path) -> None:
    made = tmp_path / "made"
    data = pickle.dumps({**SMALL, "epoch": Calls(os.mkdir, str(made))})
    assert "can't be read" in refusal(tmp_path, data, CatpError) and not made.exists()


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (SMALL["model"], "it has no model: its keys are weight"),
        ([1, 2], "its content is a list"),
        ({}, "it is empty"),
        ({"model": 1, "temperature": 1}, "it has no model: its keys are model, temperature"),
        (
            {"model": {**SMALL["model"], "space_dict": torch.ones(2, 2)}, "epoch": 1},
            "it has no temperature: its keys are model, epoch",
        ),
        ({**SMALL, "model": {"weight": [1.0]}}, "'weight' in its model is no tensor"),
        ({**SMALL, "model": {"weight": torch.eye(2).to_sparse()}}, "sparse"),
        ({**SMALL, "model": {"weight": torch.zeros(1).expand(1 << 40)}}, "larger than what the file holds"),
    ],
)
def test_files_of_something_else(tmp_path: Path, content: object, says: str) -> None:
    message = refusal(tmp_path, content)
    assert says in message


@pytest.mark.usefixtures("in_process")
def test_a_truncated_file(tmp_path: Path) -> None:
    data = saved(tmp_path)
    assert "can't be read" in refusal(tmp_path, data[: len(data) // 2], CatpError)


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("data", [b"", b"not a checkpoint", pickle.dumps(1)])
def test_files_that_torch_did_not_save(tmp_path: Path, data: bytes) -> None:
    assert "can't be read" in refusal(tmp_path, data, CatpError)


@pytest.mark.parametrize("name", ["missing.pth", "."])
def test_no_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"no such file|it is a folder"):
        unpickle(tmp_path / name, tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="where the address space has no limit, there is none to exceed")
def test_a_pickle_that_wants_far_more_memory_than_its_size(tmp_path: Path) -> None:
    """`bytearray(6 << 30)` is nothing that torch refuses, and most machines would give it."""
    data = saved(tmp_path)
    (tmp_path / "zip").write_bytes(data)
    hungry = b"\x80\x02cbuiltins\nbytearray\n\x8a\x06" + (6 << 30).to_bytes(6, "little") + b"\x85R."
    with zipfile.ZipFile(tmp_path / "zip") as old, zipfile.ZipFile(tmp_path / "new", "w") as new:
        for entry in old.namelist():
            new.writestr(entry, hungry if entry.endswith("data.pkl") else old.read(entry))
    assert "far more memory" in refusal(tmp_path, (tmp_path / "new").read_bytes(), CatpError)


@pytest.mark.parametrize(("end", "says"), [("os.abort()", "ended by SIGABRT"), ("sys.exit(3)", "exit code 3")])
def test_a_process_that_crashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, says: str) -> None:
    script = tmp_path / "crash.py"
    script.write_text(f"import os, sys; {end}")
    monkeypatch.setattr(unpickling_process, "__file__", str(script))
    assert says in refusal(tmp_path, SMALL, CatpError)
