"""The needs of every plot: a PNG file to write, and matplotlib."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from catp.runtime.errors import UsageError
from catp.runtime.files import check_file_output


def check_plot(plot: Path | None) -> None:
    """Before hours of work rather than after: raises UsageError where no plot can be drawn there."""
    if plot is None:
        return
    check_file_output("--plot", plot)
    if plot.suffix.lower() != ".png":
        raise UsageError(f"--plot {plot}: it is written as PNG; give a name that ends in .png")
    if find_spec("matplotlib") is None:
        raise UsageError("--plot: it needs matplotlib, which is not installed; pip install '.[eval]'")
