"""Two halves of a data set, which share no image: one to choose on, one to confirm on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Literal

from catp.calibration.data.dataset import VqaExample

Half = Literal["search", "confirmation"]


def half(questions: Iterable[VqaExample], seed: int, which: Half) -> Iterator[VqaExample]:
    """The questions of a half. Questions about one image are in the same one, or the halves would know each other."""
    for question in questions:
        digest = hashlib.sha256(f"{seed} {question.image_key}".encode()).digest()
        if (digest[0] % 2 == 0) == (which == "search"):
            yield question
