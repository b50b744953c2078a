"""The test pictures of the package `easy-vqa`: one shape each, with questions that others wrote."""

from __future__ import annotations

from pathlib import Path

from catp.calibration.data.dataset import QuestionList, VqaExample
from catp.calibration.data.metrics import Metric
from catp.runtime.errors import UsageError

NAME = "easy-vqa"


class EasyVqa(QuestionList):
    """Its official test split, of which no model here was trained on anything.

    Raises:
        UsageError: the package is not installed.
    """

    metric: Metric = "exact match"

    def __init__(self) -> None:
        try:
            import easy_vqa
        except ImportError:
            raise UsageError(f"data {NAME}: the package {NAME} is not installed; pip install easy-vqa") from None
        files = easy_vqa.get_test_image_paths()
        rows = zip(*easy_vqa.get_test_questions())
        super().__init__(
            NAME,
            (
                VqaExample(str(number), Path(files[image]), text, (answer,), kind_of(answer), str(image))
                for number, (text, answer, image) in enumerate(rows)
            ),
        )


def kind_of(answer: str) -> str:
    """What results are broken down by: "yes/no", or "other" for colours and shapes."""
    return "yes/no" if answer in ("yes", "no") else "other"
