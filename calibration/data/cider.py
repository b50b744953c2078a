"""CIDEr-D of captions: how many sequences of words they share with those that people gave, rare ones above all.

Follows section 3 of "CIDEr: Consensus-based Image Description Evaluation" (arXiv:1411.5726) with the changes of its
section 6, CIDEr-D, as `pycocoevalcap` computes them. Texts are split into words here, without Java's PTBTokenizer that
published numbers were computed with: lower case, no marks, contractions parted.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

LONGEST = 4
"""Words of the longest sequence."""
SIGMA = 6.0
"""Standard deviation, in words, of the penalty for another length than a reference has."""

Words = tuple[str, ...]
Vector = dict[Words, float]

_WORD = re.compile(r"\d+(?:[.,:/]\d+)*|[^\W_]+(?:['-][^\W_]+)*")
_CLITIC = re.compile(r"(?<=\w)(n't|'(?:s|m|d|re|ve|ll))$")


def split_words(text: str) -> list[str]:
    """Words in lower case, without marks; hyphens stay within words, "isn't" becomes "is" and "n't"."""
    found = _WORD.findall(text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))
    return [part for word in found for part in _CLITIC.sub(r" \1", word).split()]


class Cider:
    """Weights of all sequences of words in the references, by which captions are scored.

    Args:
        references: of each picture, what people wrote about it.

    Raises:
        ValueError: a picture has none.
    """

    def __init__(self, references: Iterable[Sequence[str]]) -> None:
        counted = [[_count(text) for text in texts] for texts in references]
        if not all(counted):
            raise ValueError("a picture without references: give at least one for each")
        pictures = Counter(words for texts in counted for words in set().union(*texts))
        self._all = math.log(len(counted)) if counted else 0.0
        self._weight = {words: self._all - math.log(number) for words, number in pictures.items()}
        self._references = [[self._weigh(counts) for counts in texts] for texts in counted]

    def scores(self, captions: Sequence[str]) -> np.ndarray:
        """float64 [pictures], 0 to 10: one caption for each picture, in their order. Papers give a hundred times their
        mean. Of one picture alone, each sequence is in all pictures, weighs nothing, and the score is 0.

        Raises:
            ValueError: there are more or fewer captions than pictures.
        """
        if len(captions) != len(self._references):
            raise ValueError(f"{len(captions)} captions of {len(self._references)} pictures: give one of each")
        found = []
        for caption, references in zip(captions, self._references):
            given = self._weigh(_count(caption))
            found.append(10 * sum(_similarity(given, reference) for reference in references) / len(references))
        return np.array(found, np.float64)

    def _weigh(self, counts: Counter[Words]) -> tuple[list[Vector], int]:
        """The vector of each length of sequence, and the text's length in words."""
        vectors: list[Vector] = [{} for _ in range(LONGEST)]
        for words, number in counts.items():
            # A sequence that no reference has weighs as if one had it.
            vectors[len(words) - 1][words] = number * self._weight.get(words, self._all)
        return vectors, sum(number for words, number in counts.items() if len(words) == 1)


def _count(text: str) -> Counter[Words]:
    words = split_words(text)
    return Counter(
        tuple(words[start : start + length])
        for length in range(1, LONGEST + 1)
        for start in range(len(words) - length + 1)
    )


def _similarity(given: tuple[list[Vector], int], reference: tuple[list[Vector], int]) -> float:
    """The mean cosine over lengths, counts clipped to the reference's, with the penalty for another length."""
    total = 0.0
    for mine, theirs in zip(given[0], reference[0]):
        norms = math.sqrt(sum(value**2 for value in mine.values()) * sum(value**2 for value in theirs.values()))
        if norms:
            shared = sum(min(value, theirs[words]) * theirs[words] for words, value in mine.items() if words in theirs)
            total += shared / norms
    return total / LONGEST * math.exp(-((given[1] - reference[1]) ** 2) / (2 * SIGMA**2))
