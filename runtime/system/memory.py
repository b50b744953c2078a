"""The machine's memory: what is asked for is compared with it before it is allocated."""

from __future__ import annotations

from pathlib import Path

WORTH_A_LOOK = 1 << 28
"""Bytes below which nothing is looked up."""

_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Of a container."""


def total_memory() -> int | None:
    """Bytes that this machine, or the container it is, has at all; None where nothing tells."""
    found = []
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith(("MemTotal:", "SwapTotal:")):
            found.append(1024 * int(line.split()[1]))
    totals = [sum(found)] if found else []
    totals += [int(text) for path in _LIMITS if (text := _read(path).strip()).isdigit()]
    return min(totals, default=None)


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except (OSError, ValueError):
        return ""
