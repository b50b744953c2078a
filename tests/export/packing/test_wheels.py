"""Requirements of requirements, read for the machine that a pack is for and not for the one that makes it."""

import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from catp.export.packing.platforms import Platform
from catp.export.packing.wheels import missing_from, requirements_of

BOARD = Platform("aarch64", "3.12")


def write_wheel(folder: Path, name: str, *requirements: str) -> None:
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        lines = ["Metadata-Version: 2.1", f"Name: {name}", "Version: 1.0"]
        lines += [f"Requires-Dist: {requirement}" for requirement in requirements]
        archive.writestr(f"{name}-1.0.dist-info/METADATA", "\n".join(lines))


def missing(folder: Path, *wanted: str, platform: Platform = BOARD) -> list[str]:
    return sorted(str(found) for found in missing_from(folder, map(Requirement, wanted), platform))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_wheel(
        tmp_path, "top", "middle>=1", 'on_arm; platform_machine == "aarch64"', 'on_intel; platform_machine == "x86_64"',
        'old; python_version < "3.12"', 'windows; sys_platform == "win32"', 'more; extra == "more"',
    )  # fmt: skip
    write_wheel(tmp_path, "middle", "leaf[fast]", "top")
    return tmp_path


def test_what_the_board_needs_is_missing_and_nothing_else(folder: Path) -> None:
    assert missing(folder, "top") == ["leaf[fast]", "on_arm"]
    assert missing(folder, "top", platform=Platform("x86_64", "3.11")) == ["leaf[fast]", "old", "on_intel"]


def test_extras_count_where_they_are_asked_for(folder: Path) -> None:
    assert missing(folder, "top[more]") == ["leaf[fast]", "more", "on_arm"]
    write_wheel(folder, "leaf", 'speed; extra == "fast"')
    assert missing(folder, "top") == ["on_arm", "speed"]


def test_nothing_is_missing_once_all_is_there(folder: Path) -> None:
    write_wheel(folder, "leaf")
    write_wheel(folder, "on_arm")
    assert missing(folder, "top") == []


def test_direct_requirements_are_those_of_the_extras() -> None:
    names = {requirement.name for requirement in requirements_of(["cpu"], BOARD)}
    assert {"numpy", "onnxruntime"} <= names and not {"uvicorn", "torch", "onnx"} & names
    assert "uvicorn" in {requirement.name for requirement in requirements_of(["cpu", "serve"], BOARD)}
