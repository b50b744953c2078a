"""Folders for what a later run may use again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """A folder of that name in `CATP_CACHE_DIR` (default: ~/.cache/catp), which may not exist yet."""
    root = os.environ.get("CATP_CACHE_DIR")
    return (Path(root) if root else Path.home() / ".cache" / "catp") / name
