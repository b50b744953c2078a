"""Our count of operations against the constants in MADTP's scripts, for what these are fed.

The scripts (github.com/double125/MADTP, `utils.py`, `compress_*_dtp.py`) count with fvcore: a multiply-add is one
operation, a normalised element five, softmax and activations none. All but NLVR2 and captions are counted in training:
VQA is one picture with 32 questions and 47 answers; retrieval and CLIP run a second, momentum copy of their encoders,
retrieval also its matching head for a true pair and two false ones. So the constants are not what one answer costs.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from documents import ROOT, table

from catp.calibration.benchmark.costs.answering import encoder_flops, step_flops
from catp.calibration.benchmark.costs.cost import vision_flops
from catp.calibration.benchmark.costs.geometry import AnsweringGeometry, VisionGeometry
from catp.calibration.benchmark.results.report import read_report

TEXT = AnsweringGeometry(layers=12, width=768, feed_forward=3072, vocabulary=30524, positions=512)
QUEUE = 57_600
"""Vectors of 256 numbers that retrieval compares with, besides those of the batch."""


def vision(side: int, patch: int = 16, layers: int = 12, width: int = 768) -> float:
    """GMAC of one picture."""
    patches = (side // patch) ** 2
    found = VisionGeometry(layers=layers, width=width, feed_forward=4 * width, patch=patch, patches=patches)
    normalised = 5 * (2 * layers + 1) * found.tokens * width
    return (vision_flops(found) / 2 + normalised) / 1e9


def text(tokens: int, image: int = 0) -> float:
    """GMAC of BLIP's text encoder, which reads so many image tokens, or none."""
    found = encoder_flops(TEXT, tokens, image, TEXT.width)
    projection = 2 * tokens * TEXT.width**2
    # A decoder's keys and values are in our count; where no image is read, a layer has no cross-attention either.
    found -= TEXT.layers * 2 * projection + (0 if image else TEXT.layers * 2 * projection)
    normalised = 5 * (1 + TEXT.layers * (3 if image else 2)) * tokens * TEXT.width
    return (found / 2 + normalised) / 1e9


def keys_values(image: int) -> float:
    """GMAC of the keys and values that every layer makes of image tokens."""
    return TEXT.layers * 2 * image * TEXT.width**2 / 1e9


def decoder(tokens: int, encoded: int) -> float:
    """GMAC of BLIP's decoder and head over so many tokens that all see each other."""
    normalised = 5 * (2 + TEXT.layers * 3) * TEXT.width
    return tokens * (step_flops(TEXT, tokens, encoded) / 2 + normalised) / 1e9


def nlvr() -> float:
    tokens, image = 36, 577  # "Params and FLOPs test, ..." five times, in BERT's pieces
    width = TEXT.width
    twins = 2 * tokens * width**2 + 2 * tokens * image * width  # the second image's queries, outputs and attention
    merges = 6 * tokens * 2 * width**2
    head = width**2 + 2 * width
    twin = (TEXT.layers * twins + merges + head) / 1e9 + keys_values(image)
    return 2 * vision(384) + text(tokens, image) + twin


def caption() -> float:
    tokens, image = 15, 577  # "a picture of car driving down a road behind a lot of sheep"
    return vision(384) + keys_values(image) + decoder(tokens, image)


def vqa() -> float:
    questions, tokens, answers, answer, image = 32, 14, 47, 5, 901  # padded to the longest question and answer
    return (
        vision(480)
        + questions * text(tokens, image)
        - (questions - 1) * keys_values(image)  # of the one picture, once
        + keys_values(tokens)  # and the first question's, for every answer
        + answers * decoder(answer, tokens)
    )


def retrieval() -> float:
    tokens, image = 35, 577
    projections = 4 * TEXT.width * 256 / 1e9
    return 2 * vision(384) + 2 * text(tokens) + 3 * text(tokens, image) + projections + 4 * 256 * QUEUE / 1e9


def clip() -> float:
    tower = VisionGeometry(layers=12, width=768, feed_forward=3072, patch=0, patches=76)  # 77 tokens of text
    words = (vision_flops(tower) / 2 + 5 * 25 * 77 * 768) / 1e9
    return 2 * (vision(336, patch=14, layers=24, width=1024) + words)


TASKS: dict[str, tuple[Callable[[], float], float, Callable[[], float]]] = {
    "NLVR2": (nlvr, 132.54, nlvr),
    "captions": (caption, 65.7, lambda: vision(384) + keys_values(577) + decoder(4 + 10, 577)),
    "VQA": (vqa, 186.1, lambda: vision(480) + text(10, 901) + keys_values(10) + decoder(3, 10)),
    "retrieval": (retrieval, 153.2, lambda: vision(384) + text(35) + text(35, 577)),
    "CLIP": (clip, 395.7, lambda: clip() / 2),
}
"""The count of what the script is fed, its constant, and the count of one answer."""


@pytest.mark.parametrize("task", TASKS)
def test_it_is_the_official_constant(task: str) -> None:
    counted, official, one = TASKS[task]
    assert counted() == pytest.approx(official, rel=0.001)
    (row,) = (cells for cells in table("docs/encoder-pruning.md", "task") if cells[0] == task)
    assert row[1:4] == [f"{official:g}", f"{counted():.1f}", f"{one():.1f}"]


def test_the_vision_encoder_alone() -> None:
    assert vision(480) == pytest.approx(92.1, rel=0.001)


@pytest.mark.parametrize(
    ("preset", "wanted"),
    [
        ("blip-nlvr2", 2 * vision(384)),
        ("blip-caption", vision(384)),
        ("blip-vqa", vision(480)),
        ("blip-retrieval", vision(384)),
    ],
)
def test_half_of_ours_is_theirs_but_for_normalisation(preset: str, wanted: float) -> None:
    """As `catp-eval` prints it, of full-size bundles whose costs were recorded."""
    report = read_report(ROOT / "tests" / "benchmarks" / "records" / "tasks" / f"{preset}.json")
    half = report.cost(1, 0.0).stages["vision"].flops / 2e9
    assert half < wanted and half == pytest.approx(wanted, rel=0.005)
