"""Statements about two images, true or false, by the graph statement_encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from catp.runtime.bundle.folder import Bundle
from catp.runtime.errors import GraphError, UsageError
from catp.runtime.inputs.padding import padded
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
        limit, longest = self._text.max_positions, max(map(len, statements))
        if limit is not None and longest > limit:
            raise UsageError(f"text: {longest} tokens, the text encoder takes {limit}; give a shorter one")

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
        ids, lengths = padded(statements, self._text.pad_token_id)
        mask = (np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int64)
        inputs = {"text_ids": ids, "text_mask": mask, "first_image_embeds": first, "second_image_embeds": second}
        logits = to_host(self._encoder.bind(inputs).run()["truth_logits"])
        if logits.shape != (len(statements), 2) or not np.isfinite(logits).all():
            raise GraphError(
                "statement_encoder", "its logits are not finite (NaN or infinite), or not two for each statement"
            )
        return logits


def probability_of_true(logits: np.ndarray) -> np.ndarray:
    """float64 [B] of logits [B, 2]."""
    false, true = logits.astype(np.float64).T
    with np.errstate(over="ignore"):  # then it is 0
        return 1 / (1 + np.exp(false - true))


def verdicts(logits: np.ndarray) -> list[Verdict]:
    """Verdicts of logits [B, 2]; equal ones say false, the first of the two."""
    found = []
    for chance, (no, yes) in zip(probability_of_true(logits).tolist(), logits.tolist()):
        true = yes > no
        found.append(Verdict(true, chance if true else 1 - chance))
    return found
