"""Slow steps of replicas: each takes at least PAUSE seconds, so that an answer lasts while a test does something else.

Python imports this file at its start where its folder is on PYTHONPATH; it changes nothing but Ray's workers.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

PAUSE = 0.02

if any(Path(argument).name == "default_worker.py" for argument in sys.orig_argv):
    from catp.runtime.generation.together import Running, Together

    step = Together.step

    def slow_step(self: Together) -> list[Running]:
        if self.running:
            time.sleep(PAUSE)
        return step(self)

    Together.step = slow_step  # type: ignore[method-assign]
