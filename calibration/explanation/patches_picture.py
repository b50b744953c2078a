"""The picture of a vision encoder that prunes: what each layer keeps, and where the rest went."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes

from catp.calibration.explanation.page import Page
from catp.calibration.explanation.patches import EncoderTrace, LayerPatches, PatchExplanation
from catp.runtime.bundle.encoder_pruning import EncoderPruningSpec

WIDTH = 1500
COLUMNS, SIDE, GAP, LEFT, TOP = 4, 330, 30, 40, 150
TITLE, BODY = 20, 18
KEPT, MERGED = "#0072B2", "#E69F00"
"""Okabe and Ito's blue and orange, which colour-blind readers tell apart."""

_MERGES = {
    "one": "Pale patches are averaged into one more token, by their scores.",
    "nearest": "Lines lead from each patch that went in a layer to the kept one that it was averaged into.",
    "drop": "Pale patches are gone.",
}


def draw_patches(explanation: PatchExplanation, path: Path) -> None:
    """Write the picture as a PNG file: the image, then one panel for each layer that prunes.

    Raises:
        OSError: it can't be written.
    """
    trace, spec = explanation.trace, explanation.trace.spec
    panels = 1 + len(trace.layers)
    rows = math.ceil(panels / COLUMNS)
    step = SIDE + 62
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        page = Page(WIDTH, TOP + rows * step + 20)
        page.text(LEFT, 24, WIDTH - 2 * LEFT, headline(explanation), 27, weight="bold")
        question = explanation.prompt or "(no prompt)"
        page.text(LEFT, 68, WIDTH - 2 * LEFT, f"{question}  →  {explanation.answer}", BODY)
        page.text(LEFT, 100, WIDTH - 2 * LEFT, describe_merge(spec), BODY)
        for number in range(panels):
            row, column = divmod(number, COLUMNS)
            left, top = LEFT + column * (SIDE + GAP), TOP + row * step
            axes = page.axes(left, top + 32, SIDE, SIDE)
            if number == 0:
                page.text(left, top, SIDE, "The image", TITLE, weight="bold")
                _show(axes, explanation.pixels)
            else:
                layer = trace.layers[number - 1]
                page.text(left, top, SIDE, caption(layer), TITLE, weight="bold")
                draw_layer(axes, explanation.pixels, explanation.patch, layer)
        page.save(path)


def headline(explanation: PatchExplanation) -> str:
    """The work that is left, in one sentence."""
    return describe_left(explanation.trace)


def describe_left(trace: EncoderTrace) -> str:
    """The patches that leave the encoder, and its work, in one sentence."""
    left, total = len(trace.survivors), trace.spec.sizes.patches
    return f"{left} of {total} patches leave the encoder, which does {trace.share:.0%} of its work"


def describe_merge(spec: EncoderPruningSpec) -> str:
    """The rule, and what a layer's panel says about the patches that went."""
    return f"Rule {spec.rule}, {spec.form} form. {_MERGES[spec.merge]}"


def draw_layer(axes: Axes, pixels: np.ndarray, side: int, layer: LayerPatches) -> None:
    """The image, uint8 [H, W, 3], with the patches that one layer leaves, and lines to where the others went.

    Args:
        side: of a patch, in pixels.
    """
    _show(axes, faded(pixels, side, layer.kept))
    for patch, target in layer.receiver.items():
        (x, y), (to_x, to_y) = centers(pixels, side, np.array([patch, target])).tolist()
        axes.plot([x, to_x], [y, to_y], color=MERGED, linewidth=1.2)
        axes.plot([to_x], [to_y], "o", color=KEPT, markersize=3)


def caption(layer: LayerPatches) -> str:
    merged = f" + {layer.merged}" if layer.merged else ""
    return f"Layer {layer.layer}: {len(layer.kept)}{merged}"


def faded(pixels: np.ndarray, side: int, kept: np.ndarray) -> np.ndarray:
    """The image, uint8 [H, W, 3], pale where a patch is not among `kept`."""
    height, width = pixels.shape[:2]
    rows, columns = height // side, width // side
    visible = np.zeros(rows * columns, bool)
    visible[kept] = True
    mask = np.zeros((height, width, 1), bool)
    mask[: rows * side, : columns * side, 0] = visible.reshape(rows, columns).repeat(side, 0).repeat(side, 1)
    pale = (0.15 * pixels + 0.85 * 255).astype(np.uint8)
    return np.where(mask, pixels, pale)


def centers(pixels: np.ndarray, side: int, patches: np.ndarray) -> np.ndarray:
    """x and y of the middle of each patch in pixels, of which the first is centered at 0: float64 [n, 2]."""
    rows, columns = np.divmod(patches, pixels.shape[1] // side)
    return (np.stack([columns, rows], 1) + 0.5) * side - 0.5


def _show(axes: Axes, pixels: np.ndarray) -> None:
    axes.imshow(pixels, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
