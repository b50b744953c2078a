"""Pictures that are to be described: Karpathy's splits, asked of a model that writes captions."""

from __future__ import annotations

from pathlib import Path

from catp.calibration.data.captions import read_captions
from catp.calibration.data.dataset import QuestionList, VqaExample, image_keys
from catp.calibration.data.metrics import Metric


class Described(QuestionList):
    """A question without words for each picture; its answers are what people wrote about it."""

    metric: Metric = "exact match"


def read_described(path: Path, folder: Path | None) -> Described:
    """The pictures of a file as `read_captions` takes it, with the same arguments and errors."""
    captions = read_captions(path, folder)
    texts: list[list[str]] = [[] for _ in captions.images]
    for text, image in zip(captions.texts, captions.image_of):
        texts[image].append(text)
    return Described(
        captions.name,
        (
            VqaExample(str(number), image, "", tuple(answers), "caption", key)
            for number, (image, key, answers) in enumerate(zip(captions.images, image_keys(captions.images), texts))
        ),
    )
