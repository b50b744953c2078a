"""MADTP's files beside a checkpoint: read as they are, or refused in one line."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from catp.export.checkpoints.madtp import read_madtp
from catp.runtime import CatpError, UsageError

SPACE = torch.linspace(-1, 1, 20).view(5, 4)


def write(folder: Path, temperature: object = 0.75, **tensors: torch.Tensor) -> Path:
    save_file(tensors or {"space_dict": SPACE}, folder / "madtp.safetensors")
    (folder / "madtp.json").write_text(json.dumps({"temperature": temperature}))
    return folder


def refusal(folder: Path, width: int = 4, error: type[CatpError] = UsageError) -> str:
    with pytest.raises(CatpError) as caught:
        read_madtp(str(folder), width)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
    return str(caught.value)


def test_a_checkpoint_without_madtp_has_none(tmp_path: Path) -> None:
    found = read_madtp(str(tmp_path), 4)
    assert found.space_dict is None and found.temperature is None and not found.query_maps


def test_half_precision_is_read_as_float32(tmp_path: Path) -> None:
    found = read_madtp(str(write(tmp_path, 1, space_dict=SPACE.half())), 4)
    assert found.space_dict is not None and found.space_dict.dtype == torch.float32
    torch.testing.assert_close(found.space_dict, SPACE, atol=1e-3, rtol=0)
    assert found.temperature == 1.0 and isinstance(found.temperature, float)


def test_the_maps_of_clip_are_read(tmp_path: Path) -> None:
    found = read_madtp(str(write(tmp_path, space_dict=SPACE, **{"visual.0.q_map.0.weight": torch.eye(4)})), 4)
    assert torch.equal(found.query_maps["visual.0.q_map.0.weight"], torch.eye(4))


def test_a_wider_encoder_is_told_why(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, space_dict=torch.ones(100, 768)), 1024)
    assert "768 wide and the vision encoder 1024" in message and "multiplies image tokens" in message


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"other": SPACE}, "no tensor space_dict"),
        ({"space_dict": SPACE, "other": SPACE.clone()}, "has other, which nothing reads"),
        ({"space_dict": SPACE.flatten()}, "space_dict is [20]; accepted: [T, W]"),
        ({"space_dict": torch.ones(0, 4)}, "space_dict is [0, 4]"),
        ({"space_dict": SPACE.clone().fill_(torch.nan)}, "no finite numbers"),
        ({"space_dict": SPACE / 0}, "no finite numbers"),
        ({"space_dict": torch.ones(5, 4, dtype=torch.int32)}, "no finite numbers"),
    ],
)
def test_tensors_that_guide_nothing(tmp_path: Path, tensors: dict[str, torch.Tensor], says: str) -> None:
    assert says in refusal(write(tmp_path, **tensors))


@pytest.mark.parametrize("value", [-0.5, "0.75", None, True, float("nan"), float("inf"), 10**400, [1]])
def test_temperatures_that_are_none(tmp_path: Path, value: object) -> None:
    assert "a number of at least 0" in refusal(write(tmp_path, value))


@pytest.mark.parametrize("text", ["{", "[0.75]", "{}", "0.75"])
def test_settings_that_are_none(tmp_path: Path, text: str) -> None:
    (write(tmp_path) / "madtp.json").write_text(text)
    assert "madtp.json" in refusal(tmp_path, error=CatpError if text == "{" else UsageError)


def test_a_truncated_file(tmp_path: Path) -> None:
    path = write(tmp_path) / "madtp.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    assert "is broken" in refusal(tmp_path, error=CatpError)
