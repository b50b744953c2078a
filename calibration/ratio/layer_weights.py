"""Weights of the cross-attention layers, learned on questions: how much each layer's rank points should count."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from catp.calibration.accuracy.answering import in_batches, read_images, read_prompt, votes_about
from catp.calibration.data.dataset import VqaExample
from catp.calibration.data.metrics import JUDGES, Metric
from catp.runtime.bundle.manifest import LAYER_POINTS, Positions
from catp.runtime.errors import CatpError, UsageError
from catp.runtime.image_sides.query_tokens import Votes
from catp.runtime.pipeline import Pipeline
from catp.runtime.pruning import top_indices

TRIED = (0.0, 0.5, 1.0, 2.0)
"""Weights that are tried for a layer, with the others as they are."""

MOST = 500
"""Questions that weights are learned on: their query tokens are all held in memory."""


def check_layer_points(pipeline: Pipeline) -> None:
    """Raises UsageError where the bundle does not output each layer's points."""
    if LAYER_POINTS not in {tensor.name for tensor in pipeline.manifest.graphs["qformer_voting"].outputs}:
        raise UsageError(
            f"bundle {pipeline.bundle.path}: it does not output each layer's points; export with --diagnostics"
        )


@dataclass(frozen=True)
class _Case:
    prompt: list[int]
    answers: tuple[str, ...]
    image: str
    embeds: np.ndarray  # [N, Dl]
    points: np.ndarray  # [L, N]


class LayerWeights:
    """Learns by coordinate search: layer by layer, the weight that answers most questions right at one ratio.

    One pass from all weights 1, so a layer more costs three evaluations more, and little is fitted to the questions.
    A weight is only changed where that is better, not where it is as good.

    Args:
        questions: of which the first MOST are used; those that can't be asked are left out.
        kept: how many tokens are kept.

    Raises:
        UsageError: the bundle does not output each layer's points.
        CatpError: no question can be asked.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        questions: Iterable[VqaExample],
        kept: int,
        positions: Positions,
        metric: Metric,
        batch_size: int,
    ) -> None:
        check_layer_points(pipeline)
        self._pipeline = pipeline
        self._kept = kept
        self._positions = positions
        self._judge = JUDGES[metric]
        self._batch_size = batch_size
        self._cases = [case for batch in in_batches(islice(questions, MOST), batch_size) for case in self._read(batch)]
        if not self._cases:
            raise CatpError("layer weights: no question could be asked; catp-eval on the same data says why")

    @property
    def layers(self) -> int:
        return len(self._cases[0].points)

    @property
    def images(self) -> list[str]:
        """The image of each question."""
        return [case.image for case in self._cases]

    def learn(self, advance: Callable[[], None] = lambda: None) -> tuple[float, ...]:
        """One weight per cross-attention layer; `advance` is called after every evaluation."""
        weights = [1.0] * self.layers
        best = self.right(weights).mean()
        advance()
        for layer in range(self.layers):
            for tried in TRIED:
                candidate = [*weights[:layer], tried, *weights[layer + 1 :]]
                if candidate == weights or not any(candidate):
                    continue
                found = self.right(candidate).mean()
                advance()
                if found > best:
                    best, weights = found, candidate
        return tuple(weights)

    def right(self, weights: Sequence[float]) -> np.ndarray:
        """How right each question is answered, [questions], keeping the tokens with the highest weighted points."""
        found = []
        for start in range(0, len(self._cases), self._batch_size):
            part = self._cases[start : start + self._batch_size]
            scores = np.stack([np.tensordot(np.array(weights), case.points, 1) for case in part])
            pruned = Votes(np.stack([case.embeds for case in part]), {}).keep(top_indices(scores, self._kept))
            limit = self._pipeline.manifest.text.max_new_tokens
            generation = self._pipeline.decode(pruned, [case.prompt for case in part], limit, self._positions)
            for case, ids in zip(part, generation.token_ids):
                found.append(self._judge(self._pipeline.detokenize(ids), case.answers))
        return np.array(found, np.float64)

    def _read(self, batch: list[VqaExample]) -> list[_Case]:
        """Every image once, or every question where votes depend on it; what Answerer skips is skipped here."""
        pixels, errors = read_images(self._pipeline, batch)
        asked, prompts = [], []
        for question in batch:
            ids, unread = read_prompt(self._pipeline, question)
            if unread is None and question.image_key not in errors:
                asked.append(question)
                prompts.append(ids)
        if not asked:
            return []
        votes, rows = votes_about(self._pipeline, asked, pixels, self._batch_size)
        points = votes.outputs[LAYER_POINTS]
        return [
            _Case(ids, question.answers, question.image_key, votes.embeds[row], points[row])
            for question, ids, row in zip(asked, prompts, rows)
        ]
