"""CIDEr-D against numbers that pycocoevalcap 1.2's CiderScorer (n=4, sigma=6) gave for the same words, and by hand."""

from __future__ import annotations

import pytest

from catp.calibration.data.cider import Cider, split_words

CAPTIONS = ["a dog sits on the red sofa", "two dogs run", "a man rides a horse on a beach"]
REFERENCES = [
    ["a dog on a red sofa", "the dog sits on the sofa", "brown dog lying on the sofa"],
    ["two dogs run over grass", "dogs playing in a field"],
    ["a man riding a horse on the beach"],
]


def test_scores_are_those_of_the_library() -> None:
    wanted = [3.1819544419505426, 2.776070425084896, 3.426145256702611]
    assert Cider(REFERENCES).scores(CAPTIONS) == pytest.approx(wanted, abs=1e-12)


def test_the_same_text_scores_ten_and_no_text_nothing() -> None:
    same = [["one dog sits here"], ["two cats sleep there"]]
    assert Cider(same).scores(["one dog sits here", ""]) == pytest.approx([10, 0])


def test_words() -> None:
    assert split_words("The man's dog isn\N{RIGHT SINGLE QUOTATION MARK}t well-kept, at 3.5!") == [
        "the", "man", "'s", "dog", "is", "n't", "well-kept", "at", "3.5",
    ]  # fmt: skip


def test_what_has_no_score_is_refused() -> None:
    with pytest.raises(ValueError, match="without references"):
        Cider([["a dog"], []])
    with pytest.raises(ValueError, match="1 captions of 3 pictures"):
        Cider(REFERENCES).scores(["a dog"])
