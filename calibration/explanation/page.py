"""A page to draw on, measured in pixels from its top left corner."""

from __future__ import annotations

import textwrap
import warnings
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

LINE_HEIGHT = 1.3
PRINTED_DPI = 150
"""What a word processor is told, so that a page of 1500 pixels is 25 cm wide."""


class Page:
    """Axes and text at given places; font sizes are pixels too."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        # At 72 dots an inch matplotlib's points are pixels.
        self._figure = Figure(figsize=(width / 72, height / 72), dpi=72, facecolor="white")
        self._canvas = FigureCanvasAgg(self._figure)

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        return self._figure.add_axes(
            (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        )

    def text(
        self, left: float, top: float, width: float, text: str, size: float, lines: int = 1, **style: Any
    ) -> float:
        """Text broken to `width` pixels and cut with an ellipsis after `lines`; returns where it ends, in pixels."""
        for line in self.wrap(text, width, lines, FontProperties(size=size, weight=style.get("weight", "normal"))):
            self._figure.text(
                left / self.width,
                1 - (top + size) / self.height,  # the base line: it does not depend on which letters occur
                line,
                size=size,
                parse_math=False,  # a dollar sign in a question is a dollar sign
                **style,
            )
            top += LINE_HEIGHT * size
        return top

    def wrap(self, text: str, width: float, lines: int, font: FontProperties) -> list[str]:
        """Lines that are at most `width` pixels wide; white space of any kind is one space."""
        text = " ".join(text.split())
        # Hardly a letter is narrower than a quarter of the font size; the placeholder needs two columns.
        for columns in range(int(width / (0.25 * font.get_size())), 1, -1):
            wrapped = textwrap.wrap(text, columns, max_lines=lines, placeholder=" …")
            if all(self._width(line, font) <= width for line in wrapped):
                return wrapped
        return []

    def _width(self, line: str, font: FontProperties) -> float:
        with _no_glyph_warnings():
            return self._canvas.get_renderer().get_text_width_height_descent(line, font, False)[0]

    def swatch(self, left: float, top: float, colour: str, size: float = 16) -> None:
        """A filled square, the key to a colour."""
        axes = self.axes(left, top, size, size)
        axes.set(facecolor=colour, xticks=[], yticks=[])

    def save(self, path: Path) -> None:
        """Write a PNG file.

        Raises:
            OSError: it can't be written.
        """
        with _no_glyph_warnings():
            self._canvas.print_png(path, pil_kwargs={"dpi": (PRINTED_DPI, PRINTED_DPI)})


def _no_glyph_warnings() -> warnings.catch_warnings:
    """Letters that the font lacks are drawn as boxes, which needs no warning on top."""
    return warnings.catch_warnings(action="ignore", category=UserWarning)
