"""Statements about two images, true or false, by the graph statement_encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from catp.runtime.bundle.folder import Bundle
from catp.runtime.errors import GraphError
from catp.runtime.matching.base import check_lengths, probability_of_yes, text_inputs
from catp.runtime.providers.base import Provider, Value, to_host


@dataclass(frozen=True)
class Verdict:
    """Whether a statement about two images is true."""

    true: bool
    probability: float  # of that verdict, 0.5 to 1

    @property
    def probability_of_true(self) -> float:
        return self.probability if self.true else 1 - self.probability

    def to_dict(self) -> dict[str, Any]:
        return {"true": self.true, "probability": self.probability}


class Judging:
    """statement_encoder, loaded."""

    def __init__(self, bundle: Bundle, provider: Provider) -> None:
        self._text = bundle.manifest.text
        self._encoder = provider.engine(bundle, "statement_encoder")

    def check(self, statements: Sequence[Sequence[int]]) -> None:
        """Raises UsageError where one of these lists of token ids is longer than the model has positions."""
        check_lengths(statements, self._text.max_positions, "the text encoder")

    def score(self, first: Value, second: Value, statements: Sequence[Sequence[int]]) -> np.ndarray:
        """Logits float32 [B, 2] of false and true: statement b about images b.

        Args:
            first, second: [B, I, Dv], of the vision encoder.
            statements: B lists of token ids.

        Raises:
            UsageError: a statement has more tokens than the model has positions.
            GraphError: the graph fails, or its logits are not finite.
        """
        self.check(statements)
        texts = text_inputs(statements, self._text.pad_token_id)
        inputs = {**texts, "first_image_embeds": first, "second_image_embeds": second}
        logits = to_host(self._encoder.bind(inputs).run()["truth_logits"])
        if logits.shape != (len(statements), 2) or not np.isfinite(logits).all():
            raise GraphError(
                "statement_encoder", "its logits are not finite (NaN or infinite), or not two for each statement"
            )
        return logits


def verdicts(logits: np.ndarray) -> list[Verdict]:
    """Verdicts of logits [B, 2]; equal ones say false, the first of the two."""
    found = []
    for chance, (no, yes) in zip(probability_of_yes(logits).tolist(), logits.tolist()):
        true = yes > no
        found.append(Verdict(true, chance if true else 1 - chance))
    return found
