"""All comparisons of one report: each tested, all corrected together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from catp.calibration.significance.holm import holm
from catp.calibration.significance.mcnemar import mcnemar_exact
from catp.calibration.significance.sign_flips import sign_flip_test
from catp.runtime.bundle.strict import Strict

LEVEL = 0.05
"""Below it a corrected p-value shows a difference."""

TestName = Literal["McNemar's exact test", "sign flips by image"]
Finding = Literal["difference shown", "no difference shown"]

Pair = tuple[int, int]
"""Two settings by their columns: accuracy in the first minus that in the second."""


class Tested(Strict):
    """The test of a difference; all are none in reports that were made before there were tests."""

    p_value: float | None = Field(default=None, description="of this comparison alone")
    p_corrected: float | None = Field(default=None, description="by Holm, for all comparisons of the report")
    finding: Finding | None = Field(default=None, description=f"difference shown: p_corrected is below {LEVEL:g}")


def name_test(values: NDArray[np.float64], images: Sequence[str] | Sequence[int]) -> TestName:
    """The test of settings that were asked the same questions.

    McNemar's takes every question by itself, so each has to be about another image.

    Args:
        values: [Q, S] how right each answer is, 0 to 1.
        images: [Q] the image of each question.
    """
    independent = len(set(images)) == len(images)
    return "McNemar's exact test" if independent and np.isin(values, (0.0, 1.0)).all() else "sign flips by image"


def compare_pairs(
    values: NDArray[np.float64], images: Sequence[str] | Sequence[int], pairs: Iterable[Pair], seed: int
) -> dict[Pair, Tested]:
    """The test of each pair of settings; a pair that comes twice counts as one comparison.

    Args:
        values, images: as of `name_test`.
        seed: of signs that are drawn.
    """
    distinct = list(dict.fromkeys(pairs))
    exact = name_test(values, images) == "McNemar's exact test"
    p_values = []
    for place, other in distinct:
        differences = values[:, place] - values[:, other]
        if exact:
            p_values.append(mcnemar_exact(int((differences > 0).sum()), int((differences < 0).sum())))
        else:
            p_values.append(sign_flip_test(differences, seed, images))
    return {
        pair: Tested(p_value=p, p_corrected=q, finding="difference shown" if q < LEVEL else "no difference shown")
        for pair, p, q in zip(distinct, p_values, holm(p_values))
    }


def describe_p(p: float) -> str:
    """A p-value for people, such as "p 0.034" or "p < 0.001"."""
    return "p < 0.001" if p < 0.001 else f"p {p:.2g}"
