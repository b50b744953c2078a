"""Platforms of packs: their wheels' tags, and which are refused."""

import pytest
from packaging.tags import sys_tags

from catp.export.packing.platforms import find_platform
from catp.runtime.errors import UsageError


def test_tags_are_those_that_pip_takes_on_such_a_machine() -> None:
    """packaging derives the tags of this machine from its glibc; of ours it accepts every one."""
    here = {tag.platform for tag in sys_tags()}
    if not any(tag.startswith("manylinux_2_28") for tag in here):
        pytest.skip("this machine has an older glibc, or is no Linux")
    found = find_platform(None, None)
    assert set(found.tags) <= here
    assert {f"manylinux_2_28_{found.machine}", f"manylinux2014_{found.machine}"} <= set(found.tags)


def test_an_arm_board_has_no_tags_of_older_systems() -> None:
    found = find_platform("linux-aarch64", "3.12")
    assert found.tags[-2:] == ["manylinux_2_17_aarch64", "manylinux2014_aarch64"]
    assert found.environment["platform_machine"] == "aarch64" and found.environment["python_version"] == "3.12"


@pytest.mark.parametrize(
    ("name", "python"),
    [
        ("linux-armv7l", "3.12"),
        ("windows-x86_64", "3.12"),
        ("linux", "3.12"),
        (None, "3.10"),
        (None, "4"),
        (None, "3.x"),
    ],
)
def test_others_are_refused(name: str | None, python: str | None) -> None:
    with pytest.raises(UsageError, match=r"accepted|from 3\.11 on"):
        find_platform(name, python)
