"""Data sets that fit a bundle: questions about one image, statements about two, or pictures and texts."""

from __future__ import annotations

from catp.calibration.data.dataset import DataSet, PairList
from catp.calibration.data.demo import DemoScenes
from catp.calibration.data.demo_pairs import DemoPairs
from catp.runtime.bundle.manifest import Manifest
from catp.runtime.errors import UsageError


def judges_pairs(manifest: Manifest) -> bool:
    """Whether a bundle is asked about two images at a time."""
    return manifest.model.language == "two-images"


def finds_texts(manifest: Manifest) -> bool:
    """Whether a bundle compares pictures with texts, as retrieval does."""
    return not manifest.writes_text and not judges_pairs(manifest)


def fitting(manifest: Manifest, questions: DataSet) -> DataSet:
    """The data set as this bundle can be asked it; the demo has scenes, and pairs of them.

    Raises:
        UsageError: statements about two images for a model that reads one, or the other way round.
    """
    pairs = judges_pairs(manifest)
    if pairs and isinstance(questions, DemoScenes):
        return DemoPairs()
    if pairs != isinstance(questions, PairList):
        accepted = "demo, or a file of NLVR2's statements" if pairs else "questions about one image, such as VQAv2"
        raise UsageError(f"data {questions.name}: it is none for {manifest.model.family}; accepted: {accepted}")
    return questions
