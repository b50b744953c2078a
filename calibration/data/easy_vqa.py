"""The test pictures of the package `easy-vqa`: one shape each, with questions that others wrote."""

from __future__ import annotations

from catp.calibration.data.dataset import QuestionList, VqaExample
from catp.calibration.data.metrics import Metric
from catp.runtime.errors import UsageError

NAME = "easy-vqa"


class EasyVqa(QuestionList):
    """The official test split; no model here was trained on any of it.

    Raises:
        UsageError: the package is not installed.
    """

    metric: Metric = "exact match"

    def __init__(self) -> None:
        try:
            from catp.export.demo.vqa.easy import pictures
        except ImportError:
            raise UsageError(f"data {NAME}: the package {NAME} is not installed; pip install {NAME}") from None
        super().__init__(
            NAME,
            (
                VqaExample(
                    f"{picture.number}-{place}", picture.file, text, (answer,), kind_of(answer), str(picture.number)
                )
                for picture in pictures("test")
                for place, (text, answer) in enumerate(picture.questions)
            ),
        )


def kind_of(answer: str) -> str:
    """The group that results are broken down by: "yes/no", or "other" for colours and shapes."""
    return "yes/no" if answer in ("yes", "no") else "other"
