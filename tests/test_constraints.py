"""The pinned and the oldest versions: plain lines, within pyproject.toml's ranges, and what they say moved."""

from __future__ import annotations

import importlib.util
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent


def _upgrade() -> Any:
    spec = importlib.util.spec_from_file_location("upgrade", ROOT / "constraints" / "upgrade.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


upgrade = _upgrade()
PYPROJECT = (ROOT / "pyproject.toml").read_text()


def requirements(*extras: str) -> list[Requirement]:
    """Direct ones of the project and of its extras, extras of extras included."""
    project = tomllib.loads(PYPROJECT)["project"]
    found = [Requirement(line) for line in project["dependencies"]]
    waiting = list(extras)
    while waiting:
        for line in project["optional-dependencies"][waiting.pop()]:
            requirement = Requirement(line)
            if requirement.name == project["name"]:
                waiting += requirement.extras
            else:
                found.append(requirement)
    return found


@pytest.mark.parametrize(
    ("name", "extras"), [("pinned.txt", ("export", "cpu", "dev")), ("oldest.txt", ("export", "cpu", "test"))]
)
def test_every_requirement_has_a_version_in_its_range(name: str, extras: tuple[str, ...]) -> None:
    versions = upgrade.read((ROOT / "constraints" / name).read_text())
    for requirement in requirements(*extras):
        assert versions[requirement.name], requirement
        assert all(requirement.specifier.contains(found) for found in versions[requirement.name]), requirement


def test_the_oldest_versions_are_the_lower_bounds() -> None:
    versions = upgrade.read((ROOT / "constraints" / "oldest.txt").read_text())
    for requirement in requirements("export", "cpu", "test"):
        (lower,) = (spec.version for spec in requirement.specifier if spec.operator == ">=")
        found = min(map(Version, versions[requirement.name]))
        # A bound of two parts ("5.24") admits 5.24.0; releases that were never made round it up ("1.7.1.116").
        assert found.release[: len(Version(lower).release)] == Version(lower).release, (str(requirement), str(found))


def test_what_broke_the_product_before_is_bound_from_above() -> None:
    bound = {r.name for r in requirements("export", "cpu", "openvino") if any(s.operator == "<" for s in r.specifier)}
    assert bound >= {"torch", "transformers", "onnxruntime", "openvino"}


@pytest.mark.parametrize(
    "line",
    [
        "numpy>=2.0",
        "--pre",
        "numpy==2.0 --hash=sha256:0",
        "a @ file:///tmp/a.whl",
        "-e .",
    ],
)
def test_a_line_that_is_no_plain_version_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="a line is name==version"):
        upgrade.read(f"torch==2.13.0\n{line}\n")


def test_what_moved_came_and_went_is_said() -> None:
    old = upgrade.read("a==1.0\nb==2.0 ; python_full_version < '3.12'\nb==2.1 ; python_full_version >= '3.12'\nc==1\n")
    new = upgrade.read("a==1.0\nb==2.2  # a comment\nd==4\n")
    assert upgrade.changes(old, new) == ["b: 2.0 and 2.1 -> 2.2", "c: 1 -> gone", "d: new -> 4"]


def test_what_the_ranges_hold_back_is_found_without_upper_bounds() -> None:
    free = tomllib.loads(upgrade.without_upper_bounds(PYPROJECT))["project"]
    lines = _lines(free)
    assert {specifier.operator for line in lines for specifier in Requirement(line).specifier} == {">="}
    assert [Requirement(line).name for line in lines] == [
        Requirement(line).name for line in _lines(tomllib.loads(PYPROJECT)["project"])
    ]


def _lines(project: dict[str, Any]) -> list[str]:
    return [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
