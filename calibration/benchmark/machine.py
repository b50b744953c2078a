"""The machine that a measurement was taken on, so that it can be judged and repeated."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import sys
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from catp.runtime.system.machine import available_cpus, cpu_model

LIBRARIES = (
    "catp-exporter", "numpy", "pillow", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx",
    "torch", "transformers", "openvino", "nncf",
)  # fmt: skip


class Machine(BaseModel):
    """Hardware, power state and libraries."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cpu: str
    cpus: int = Field(description="logical ones that this process may use")
    memory_bytes: int | None
    governor: str | None = Field(description="of the first CPU's clock; None where the system does not say")
    turbo: bool | None
    huge_pages: str | None = Field(default=None, description="whether memory comes in pages of 2 MiB; None: unknown")
    platform: str
    python: str
    versions: dict[str, str] = Field(description="of the libraries that are installed")


def describe_machine() -> Machine:
    return Machine(
        cpu=cpu_model(),
        cpus=available_cpus(),
        memory_bytes=_memory_bytes(),
        governor=_read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        turbo=_turbo(),
        huge_pages=_huge_pages(),
        platform=platform.platform(),
        python=platform.python_version(),
        versions=_versions(),
    )


def load_average() -> float | None:
    """Runnable processes, mean over a minute; None where the system does not count them."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def busy_seconds_of_others() -> float | None:
    """CPU time since the machine started that other processes used, or the hypervisor took; None where it is unknown.

    Whoever waits in spinning threads (OpenMP) loses far more by it than whoever blocks, so that not even ratios of
    measurements taken side by side are fair: a small model in PyTorch took 25 times as long beside one busy process.
    """
    line = (_read("/proc/stat") or "").splitlines()[:1]
    if not line or not line[0].startswith("cpu "):
        return None
    # proc_stat(5): user nice system idle iowait irq softirq steal, in ticks
    user, nice, system, _, _, irq, softirq, steal = (int(ticks) for ticks in line[0].split()[1:9])
    own = resource.getrusage(resource.RUSAGE_SELF)
    total = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return total - own.ru_utime - own.ru_stime


def peak_memory() -> int:
    """Bytes of host memory that this process has had resident at most so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # macOS counts in bytes, Linux in KiB


def resident_memory() -> int | None:
    """Bytes of host memory that this process has resident now; None where the system does not say."""
    pages = (_read("/proc/self/statm") or "").split()
    return int(pages[1]) * resource.getpagesize() if len(pages) > 1 else None


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None


def _turbo() -> bool | None:
    intel = _read("/sys/devices/system/cpu/intel_pstate/no_turbo")
    if intel is not None:
        return intel == "0"
    boost = _read("/sys/devices/system/cpu/cpufreq/boost")
    return None if boost is None else boost == "1"


def _huge_pages() -> str | None:
    """Linux's choice (always, madvise, never), and whether this process's allocator asks where it has to."""
    modes = _read("/sys/kernel/mm/transparent_hugepage/enabled")
    if modes is None:
        return None
    chosen = modes.partition("[")[2].partition("]")[0]
    asks = "glibc.malloc.hugetlb=1" in os.environ.get("GLIBC_TUNABLES", "").split(":")
    return f"{chosen}, which glibc asks for" if chosen == "madvise" and asks else chosen


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None
