"""A signal that Python handles finds a stack after OpenVINO's models have come and gone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("openvino", reason="an extra of its own: pip install '.[openvino]'")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="OpenVINO's signal stacks are Linux's")

PROGRAM = """
import faulthandler, gc, os, signal, sys
from contextlib import nullcontext
from catp.runtime.providers.openvino.library import import_openvino
from catp.runtime.providers.openvino.signal_stack import signal_stack_kept
faulthandler.enable()
kept = signal_stack_kept if sys.argv[1] == "kept" else nullcontext
openvino = import_openvino()
cores = []
for _ in range(2):
    with kept():
        cores.append(openvino.Core())
        cores[-1].available_devices  # which loads the CPU's plugin
while cores:
    del cores[0]  # the first one first
    gc.collect()
signal.signal(signal.SIGUSR1, lambda number, frame: print("handled", flush=True))
os.kill(os.getpid(), signal.SIGUSR1)
"""


def run(argument: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, argument]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[4])


def test_a_signal_is_handled() -> None:
    result = run("kept")
    assert result.returncode == 0 and result.stdout == "handled\n", result.stderr


def test_openvino_alone_takes_the_stack_away() -> None:
    """Where this fails, a newer OpenVINO has mended it, and `signal_stack_kept` can go."""
    result = run("left")
    assert result.returncode == -11 and result.stdout == "", result
