"""The picture that catp-explain draws of an explanation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.image import AxesImage

from catp.calibration.explanation.explanation import Explanation
from catp.calibration.explanation.page import Page
from catp.calibration.explanation.patches import EncoderTrace
from catp.calibration.explanation.patches_picture import caption, centers, describe_left, describe_merge, draw_layer

WIDTH, HEIGHT = 1500, 1050
"""Pixels, of a bundle whose encoder prunes nothing; what one leaves, layer by layer, comes below."""

COLUMNS, PANEL, GAP = 6, 210, 32
"""Panels of layers in a row, their side and the space between, in pixels."""

# Okabe and Ito's colours, which colour-blind readers tell apart; in greyscale one is dark and the other light.
KEPT, DROPPED = "#0072B2", "#E69F00"
GREY = "#555555"
HEAT = ListedColormap([(*colormaps["magma_r"](0.85 * x)[:3], 0.85 * x**0.5) for x in np.linspace(0, 1, 256)])
"""From transparent to dark: where nobody looks the image shows through."""
LEFT, RIGHT = 40, 1460
TITLE, BODY, SMALL = 20, 18, 16


def draw(frames: Sequence[Explanation], path: Path) -> None:
    """Write the picture as a PNG file; below it, of an encoder that prunes, one panel for each layer that does.

    Args:
        frames: of a video, drawn one below another; an image is one.

    Raises:
        OSError: it can't be written.
    """
    # A user's matplotlibrc (LaTeX, dark styles) must not decide whether the page can be read.
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        height = height_of(frames[0].encoder)
        page = Page(WIDTH, len(frames) * height)
        for place, explanation in enumerate(frames):
            top = place * height
            title = headline(frames) if place == 0 else ""
            if len(frames) > 1:
                kept, total = len(explanation.kept), len(explanation.scores)
                title = f"Frame {place + 1} of {len(frames)}: {kept} of {total} kept{title and f'. {title}'}"
            page.text(LEFT, top + 24, RIGHT - LEFT, title, 29 if len(frames) == 1 else 24, weight="bold")
            _images(page, explanation, top + 84)
            if place == 0:
                _facts(page, frames, top + 84)
            _scores(page, explanation, top + 532)
            _single_maps(page, explanation, top + 794)
            if explanation.encoder is not None:
                _layers(page, explanation, explanation.encoder, top + HEIGHT)
        page.save(path)


def count_tokens(frames: Sequence[Explanation]) -> tuple[int, int]:
    """Query tokens of all frames, and how many of them are kept."""
    return sum(len(frame.scores) for frame in frames), sum(len(frame.kept) for frame in frames)


def height_of(encoder: EncoderTrace | None) -> int:
    """Pixels of the page."""
    if encoder is None:
        return HEIGHT
    return HEIGHT + 62 + math.ceil(len(encoder.layers) / COLUMNS) * (PANEL + 62)


def headline(frames: Sequence[Explanation]) -> str:
    """The effect of pruning, in one sentence.

    Args:
        frames: of a video; an image is one.
    """
    explanation, (total, kept) = frames[0], count_tokens(frames)
    if kept == total:
        return f"Nothing pruned: all {total} query tokens are kept"
    outcome = "the same answer" if explanation.agree else "another answer"
    return f"With {kept} of its {total} query tokens the model gives {outcome}"


def _images(page: Page, explanation: Explanation, top: float) -> None:
    """The image, and in one colour scale what kept and dropped query tokens look at."""
    side, step = 290, 314
    height, width = explanation.pixels.shape[:2]
    page.text(LEFT, top, side, "The image", TITLE, weight="bold")
    _show(page.axes(LEFT, top + 32, side, side), explanation.pixels)

    scale = Normalize(0, max(100 * float(explanation.heat(tokens).max()) for _, tokens, _ in _groups(explanation)))
    left, shares = LEFT, []
    for name, tokens, colour in _groups(explanation):
        left += step
        page.swatch(left, top + 4, colour)
        page.text(left + 24, top, step - 24, f"Read by the {len(tokens)} {name}", TITLE, weight="bold")
        drawn = _show_heat(page.axes(left, top + 32, side, side), explanation, 100 * explanation.heat(tokens), scale)
        shares.append(f"{100 * explanation.cls_share(tokens):.0f} % ({name})")
    bar = page.axes(left + step - 8, top + 32, 16, side)
    bar.figure.colorbar(drawn, cax=bar, format="{x:g} %")
    bar.tick_params(labelsize=SMALL)
    page.text(
        LEFT,
        top + side + 44,
        3 * step + 60,
        "Query tokens read the image by cross-attention. Colour: the share of it on a patch, mean over heads, layers "
        f"and tokens. {_read_of(explanation)}The CLS token, which is no place in the image, receives another "
        f"{' and '.join(shares)}. The image is shown as the model gets it: {width} x {height} pixels, patches of "
        f"{explanation.patch} x {explanation.patch}.",
        SMALL,
        lines=3 if explanation.encoder is None else 4,
        color=GREY,
    )


def _read_of(explanation: Explanation) -> str:
    """The meaning of the marks, where the encoder has left some patches of the image."""
    if (encoder := explanation.encoder) is None:
        return ""
    merged = " Of a merged token, each of its patches has an equal part." if encoder.spec.merge != "drop" else ""
    gone = f" Crosses: the {len(encoder.unseen)} that were dropped, which nothing reads." if len(encoder.unseen) else ""
    return f"Dots: the {len(encoder.survivors)} patches that leave the encoder.{merged}{gone} "


def _groups(explanation: Explanation) -> list[tuple[str, np.ndarray, str]]:
    """Name, tokens and colour of those kept and, where there are any, those dropped."""
    groups = [("kept", explanation.kept, KEPT), ("dropped", explanation.dropped, DROPPED)]
    return [group for group in groups if len(group[1])]


def _show(axes: Axes, pixels: np.ndarray) -> None:
    height, width = pixels.shape[:2]
    axes.imshow(pixels, extent=(0, width, height, 0), interpolation="nearest")
    axes.set(xticks=[], yticks=[])


def _show_heat(axes: Axes, explanation: Explanation, heat: np.ndarray, scale: Normalize) -> AxesImage:
    """Patches coloured over the faded image, each patch in one colour: nothing between them was measured."""
    grey = explanation.pixels @ np.array([0.299, 0.587, 0.114])
    _show(axes, np.repeat((160 + 0.37 * grey)[:, :, None], 3, 2).astype(np.uint8))
    rows, columns = np.array(heat.shape) * explanation.patch
    drawn = axes.imshow(heat, HEAT, scale, extent=(0, columns, rows, 0), interpolation="nearest")
    height, width = grey.shape
    if (encoder := explanation.encoder) is not None:
        for patches, marker in ((encoder.survivors, "o"), (encoder.unseen, "x")):
            x, y = centers(explanation.pixels, explanation.patch, patches).T + 0.5  # here pixels begin at 0
            size = min(5.0, 72 / columns * explanation.patch)
            axes.plot(x, y, marker, color="black", markeredgecolor="white" if marker == "o" else GREY, markersize=size)
    axes.set(xlim=(0, width), ylim=(height, 0))
    return drawn


def _facts(page: Page, frames: Sequence[Explanation], top: float) -> None:
    """Question, both answers, and how they came about."""
    left, width = 1090, RIGHT - 1090
    explanation, (total, kept) = frames[0], count_tokens(frames)
    manifest = explanation.manifest

    def fact(label: str, text: str, size: float, lines: int, **style: str) -> None:
        nonlocal top
        top = page.text(left, top, width, label, SMALL, color=GREY)
        top = page.text(left, top, width, text, size, lines, **style) + 7

    fact("Prompt", explanation.prompt.strip() or "(none: a caption is asked for)", BODY, 3)
    fact(f"Answer with all {total} query tokens", explanation.full_answer or "(empty)", TITLE, 2, weight="bold")
    answer = explanation.answer or "(empty)"
    fact(f"Answer with {kept} of {total} ({explanation.kept_by})", answer, TITLE, 2, weight="bold")
    fact("Voting method", method(explanation), BODY, 3)
    fact("Model", f"{manifest.model.id} ({manifest.precision_label})", BODY, 1)
    fact("Positions of kept tokens", explanation.positions, BODY, 1)


def method(explanation: Explanation) -> str:
    """The voting method and its options, and whether the prompt decides votes too."""
    pruning = explanation.manifest.pruning
    options = [f"{name.replace('_', ' ')}: {value}" for name, value in pruning.options.items() if value != []]
    found = f"{pruning.method}: {', '.join(options)}" if options else pruning.method
    return f"{found}, of image and prompt" if explanation.manifest.reads_instruction else found


def _scores(page: Page, explanation: Explanation, top: float) -> None:
    """A bar per query token, in the order of the query tokens."""
    scores, threshold = explanation.scores, explanation.threshold
    page.text(
        LEFT, top, 700, f"Score of each query token ({explanation.manifest.pruning.method})", TITLE, weight="bold"
    )
    axes = page.axes(LEFT + 70, top + 36, RIGHT - LEFT - 70, 150)
    for name, tokens, colour in _groups(explanation):
        axes.bar(tokens, scores[tokens], 0.78, color=colour, label=f"{name}: {len(tokens)}")
    axes.axhline(
        threshold, color="black", linewidth=1.5, linestyle=(0, (5, 3)), label=f"lowest kept: {number(threshold)}"
    )
    axes.set(xlim=(-0.7, len(scores) - 0.3), xticks=range(0, len(scores), 1 + len(scores) // 50))
    axes.set_xlabel("query token", size=SMALL)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=SMALL)
    axes.yaxis.set_major_formatter(lambda score, _: number(score))
    axes.locator_params(axis="y", nbins=4)
    lines, names = axes.get_legend_handles_labels()
    lines, names = lines[1:] + lines[:1], names[1:] + names[:1]
    axes.legend(
        lines, names, loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False, fontsize=BODY, borderaxespad=0
    )


def number(score: float) -> str:
    """Rank points run to hundreds of thousands, what a token adds or explains may be a thousandth."""
    return f"{score:,.0f}" if score == 0 or abs(score) >= 100 else f"{score:.3g}"


def _single_maps(page: Page, explanation: Explanation, top: float) -> None:
    """Where every query token looks, best score first: tokens that look at the same place stand out."""
    page.text(LEFT, top, 900, "Where each query token looks, highest score first", TITLE, weight="bold")
    page.text(
        LEFT + 590,
        top + 4,
        RIGHT - LEFT - 590,
        "each map in a colour scale of its own; tokens whose maps look alike read the same place",
        SMALL,
        color=GREY,
    )
    order = explanation.best_first
    columns = max(16, math.ceil(len(order) / 2))
    step = (RIGHT - LEFT) / columns
    side = 0.78 * step
    kept = set(explanation.kept.tolist())
    for place, token in enumerate(order.tolist()):
        row, column = divmod(place, columns)
        left = LEFT + column * step
        line = top + 38 + row * (side + 36)
        axes = page.axes(left + 3, line, side, side)
        axes.imshow(explanation.heat(np.array([token])), HEAT, interpolation="nearest", vmin=0)
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set(color=KEPT if token in kept else DROPPED, linewidth=4)
        page.text(left + 3 + side / 2, line + side + 3, step, str(token), SMALL, ha="center")


def _layers(page: Page, explanation: Explanation, encoder: EncoderTrace, top: float) -> None:
    """The patches that survive each layer of the encoder, and where the others went."""
    page.text(LEFT, top, RIGHT - LEFT, describe_left(encoder), TITLE, weight="bold")
    page.text(LEFT, top + 30, RIGHT - LEFT, describe_merge(encoder.spec), SMALL, color=GREY)
    for place, layer in enumerate(encoder.layers):
        row, column = divmod(place, COLUMNS)
        left, line = LEFT + column * (PANEL + GAP), top + 62 + row * (PANEL + 62)
        page.text(left, line, PANEL, caption(layer), BODY, weight="bold")
        draw_layer(page.axes(left, line + 28, PANEL, PANEL), explanation.pixels, explanation.patch, layer)
