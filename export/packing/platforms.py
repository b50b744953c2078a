"""Platforms that a pack can be made for: tags of their wheels, and the environment that requirements are read in."""

from __future__ import annotations

import platform
import re
import sys
from dataclasses import dataclass

from catp.runtime.errors import UsageError

MACHINES = ("x86_64", "aarch64")
FIRST_GLIBC, GLIBC = 17, 28
"""Minor versions of glibc 2: the oldest that wheels are tagged with, and the one that ONNX Runtime's wheels need."""

LEGACY = {5: "manylinux1", 12: "manylinux2010", 17: "manylinux2014"}
"""Names that tags had before they had glibc's version in them (https://peps.python.org/pep-0600/)."""


@dataclass(frozen=True)
class Platform:
    """Linux with glibc on one kind of processor, and a version of CPython."""

    machine: str
    python: str  # such as "3.12"

    @property
    def name(self) -> str:
        return f"linux-{self.machine}"

    @property
    def tags(self) -> list[str]:
        """Platform tags of wheels that run there, as pip takes them: it derives none from another."""
        first = 5 if self.machine == "x86_64" else FIRST_GLIBC
        found = []
        for minor in range(GLIBC, first - 1, -1):
            found.append(f"manylinux_2_{minor}_{self.machine}")
            if minor in LEGACY:
                found.append(f"{LEGACY[minor]}_{self.machine}")
        return found

    @property
    def environment(self) -> dict[str, str]:
        """Values of the markers in requirements (https://peps.python.org/pep-0508/#environment-markers)."""
        return {
            "implementation_name": "cpython",
            "implementation_version": f"{self.python}.0",
            "os_name": "posix",
            "platform_machine": self.machine,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": f"{self.python}.0",
            "python_version": self.python,
            "sys_platform": "linux",
        }


def find_platform(name: str | None, python: str | None) -> Platform:
    """The platform of these names; None: this machine's, and the Python that runs this.

    Raises:
        UsageError: there are no packs for it.
    """
    accepted = ", ".join(f"linux-{machine}" for machine in MACHINES)
    if name is None:
        name = f"{sys.platform}-{platform.machine()}"
    system, _, machine = name.partition("-")
    if system != "linux" or machine not in MACHINES:
        raise UsageError(f"--platform {name}: accepted: {accepted}")
    python = python or f"{sys.version_info.major}.{sys.version_info.minor}"
    if not re.fullmatch(r"3\.[0-9]{1,2}", python) or int(python[2:]) < 11:
        raise UsageError(f"--python {python}: a version such as 3.12, from 3.11 on")
    return Platform(machine, python)
