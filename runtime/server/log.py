"""Structured log: a JSON object a line on standard error, never with what a client asked or was answered."""

from __future__ import annotations

import json
import sys
import time
import traceback
from typing import Any

from catp.runtime.errors import CatpError
from catp.runtime.system.printable import in_json


def log(event: str, **fields: Any) -> None:
    """Write one line.

    Args:
        fields: numbers, names, ids; no prompt, no picture, no answer.
    """
    now = time.time()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
    line = in_json(json.dumps({"time": stamp, "event": event, **fields}))
    try:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
    except OSError:
        pass  # nobody reads it: no reason to end


def describe(error: BaseException) -> dict[str, str]:
    """Fields of an error: its text, and where a bug came from."""
    found = {"error": str(error) or type(error).__name__}
    if not isinstance(error, CatpError):
        found["traceback"] = "".join(traceback.format_exception(error))
    return found
