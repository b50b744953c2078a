"""The processor that this process runs on, and its memory."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def cpu_model() -> str:
    """Its model, such as "AMD EPYC 9454 48-Core Processor"; the architecture where the system does not say more."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def available_cpus() -> int:
    """Logical CPUs that this process may use: a container often has fewer than its machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_memory() -> int | None:
    """Bytes of host memory that could be had now without swapping; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return 1024 * int(value.split()[0])
    return None
