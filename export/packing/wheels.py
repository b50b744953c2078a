"""Wheels of everything that the runtime requires, for another machine, by pip."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from catp.export.packing.own_wheel import find_distribution
from catp.export.packing.platforms import Platform
from catp.runtime.errors import CatpError, UsageError

_ROUNDS = 20
"""Rounds of the search for requirements of requirements: chains of known libraries have less than ten."""

_NO_NETWORK = ("Retrying (", "Failed to establish a new connection", "Temporary failure in name resolution")


def requirements_of(extras: Sequence[str], platform: Platform) -> list[Requirement]:
    """Direct requirements of this project there, with those extras."""
    return list(_there(find_distribution().requires or (), extras, platform))


def download_wheels(
    requirements: Iterable[Requirement], platform: Platform, folder: Path, constraint: Path | None = None
) -> None:
    """Fill a folder with the wheels of requirements, and of all that they require.

    pip reads the markers of requirements as for the machine it runs on. So what another one needs is looked up in the
    wheels themselves, and fetched where it is missing.

    Args:
        constraint: a file of versions, as pip has them.

    Raises:
        UsageError: there is no pip here.
        CatpError: something can't be had; nothing is left out.
    """
    if importlib.util.find_spec("pip") is None:
        raise UsageError("catp-pack needs pip, which is not installed here; python -m ensurepip")
    wanted = list(requirements)
    for _ in range(_ROUNDS):
        _download(sorted({str(requirement) for requirement in wanted}), platform, folder, constraint)
        missing = missing_from(folder, wanted, platform)
        if not missing:
            return
        wanted += missing
    raise CatpError(f"{', '.join(sorted(map(str, missing)))}: required without an end; nothing was published")


def _download(wanted: Sequence[str], platform: Platform, folder: Path, constraint: Path | None) -> None:
    for old in folder.glob("*.whl"):  # each round resolves all together: no library twice
        old.unlink()
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--quiet"]
    command += ["--retries", "1", "--timeout", "15", "--only-binary", ":all:", "--dest", str(folder)]
    command += ["--python-version", platform.python, "--implementation", "cp"]
    for tag in platform.tags:
        command += ["--platform", tag]
    if constraint is not None:
        command += ["--constraint", str(constraint)]
    result = subprocess.run([*command, *wanted], capture_output=True, text=True, errors="replace")
    if result.returncode:
        raise CatpError(f"{_reason(result.stderr, platform)}; nothing was published")


def _reason(said: str, platform: Platform) -> str:
    """One line of pip's."""
    errors = [line.removeprefix("ERROR: ") for line in said.splitlines() if line.startswith("ERROR: ")]
    found = re.search(r"requirement (\S+)", " ".join(errors))
    what = f"{found[1]}: " if found else ""
    if any(sign in said for sign in _NO_NETWORK):
        return f"{what}pip can't reach its package index; a pack is made where there is a network"
    there = f"{platform.name} with Python {platform.python}"
    return f"{what}pip finds no wheel for {there} ({errors[-1] if errors else 'it says nothing'})"


def missing_from(folder: Path, wanted: Iterable[Requirement], platform: Platform) -> list[Requirement]:
    """Requirements, and requirements of the wheels that meet them, for which a folder has no wheel."""
    wheels = {parse_wheel_filename(path.name)[0]: path for path in folder.glob("*.whl")}
    waiting, missing = list(wanted), []
    seen: set[tuple[str, str]] = set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        asked = {(name, extra) for extra in ("", *requirement.extras)} - seen
        if name not in wheels:
            missing += [requirement] if asked else []
        elif asked:
            lines = _metadata_of(wheels[name]).get_all("Requires-Dist", [])
            waiting += _there(lines, sorted(requirement.extras), platform)
        seen |= asked
    return missing


def _metadata_of(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
        return HeaderParser().parsestr(archive.read(name).decode())


def _there(lines: Iterable[str], extras: Sequence[str], platform: Platform) -> Iterator[Requirement]:
    """Requirements that hold on a platform, without their markers."""
    environment = {**{name: str(value) for name, value in default_environment().items()}, **platform.environment}
    for line in lines:
        requirement = Requirement(line)
        given = [{**environment, "extra": extra} for extra in ("", *extras)]
        if requirement.marker is None or any(requirement.marker.evaluate(values) for values in given):
            requirement.marker = None
            yield requirement
