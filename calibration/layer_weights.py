"""Weights of the cross-attention layers, learned on questions: how much each layer's rank points should count."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice

import numpy as np

from catp.calibration.answering import in_batches
from catp.calibration.data.dataset import Question
from catp.calibration.metrics import JUDGES, Metric
from catp.runtime.errors import ImageError, UsageError
from catp.runtime.manifest import LAYER_POINTS, Positions
from catp.runtime.pipeline import Pipeline, Votes
from catp.runtime.pruning import top_indices

TRIED = (0.0, 0.5, 1.0, 2.0)
"""Weights that are tried for a layer, with the others as they are."""

MOST = 500
"""Questions that weights are learned on: their query tokens are all held in memory."""


@dataclass(frozen=True)
class _Case:
    prompt: list[int]
    answers: tuple[str, ...]
    embeds: np.ndarray  # [N, Dl]
    points: np.ndarray  # [L, N]


class LayerWeights:
    """Learns by coordinate search: layer by layer, the weight that answers most questions right at one ratio.

    One pass from all weights 1, so a layer more costs three evaluations more, and little is fitted to the questions.
    A weight is only changed where that is better, not where it is as good.

    Args:
        questions: of which the first MOST are used.
        kept: how many tokens are kept.

    Raises:
        UsageError: the bundle does not put out each layer's points.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        questions: Iterable[Question],
        kept: int,
        positions: Positions,
        metric: Metric,
        batch_size: int,
    ) -> None:
        if LAYER_POINTS not in {tensor.name for tensor in pipeline.manifest.graphs["qformer_voting"].outputs}:
            raise UsageError(
                f"bundle {pipeline.bundle.path}: it does not put out each layer's points; export with --diagnostics"
            )
        self._pipeline = pipeline
        self._kept = kept
        self._positions = positions
        self._judge = JUDGES[metric]
        self._batch_size = batch_size
        self._cases = [case for batch in in_batches(islice(questions, MOST), batch_size) for case in self._read(batch)]

    @property
    def layers(self) -> int:
        return len(self._cases[0].points)

    def learn(self, advance: Callable[[], None] = lambda: None) -> tuple[float, ...]:
        """One weight per cross-attention layer; `advance` is called after every evaluation."""
        weights = [1.0] * self.layers
        best = self.accuracy(weights)
        advance()
        for layer in range(self.layers):
            for tried in TRIED:
                candidate = [*weights[:layer], tried, *weights[layer + 1 :]]
                if candidate == weights or not any(candidate):
                    continue
                found = self.accuracy(candidate)
                advance()
                if found > best:
                    best, weights = found, candidate
        return tuple(weights)

    def accuracy(self, weights: list[float] | tuple[float, ...]) -> float:
        """Mean over the questions, keeping the tokens with the highest weighted points."""
        total = 0.0
        for start in range(0, len(self._cases), self._batch_size):
            part = self._cases[start : start + self._batch_size]
            scores = np.stack([np.tensordot(np.array(weights), case.points, 1) for case in part])
            kept = top_indices(scores, self._kept)
            pruned = Votes(np.stack([case.embeds for case in part]), {}).keep(kept)
            limit = self._pipeline.manifest.text.max_new_tokens
            generation = self._pipeline.decode(pruned, [case.prompt for case in part], limit, self._positions)
            for case, ids in zip(part, generation.token_ids):
                total += self._judge(self._pipeline.detokenize(ids), case.answers)
        return total / len(self._cases)

    def _read(self, batch: list[Question]) -> list[_Case]:
        readable = []
        for question in batch:
            try:
                readable.append((question, self._pipeline.preprocess([question.image])))
            except ImageError:
                continue  # counted and named by the search itself
        if not readable:
            return []
        votes = self._pipeline.votes(self._pipeline.encode(np.concatenate([pixels for _, pixels in readable])))
        points = votes.outputs[LAYER_POINTS]
        return [
            _Case(self._pipeline.tokenize(question.prompt), question.answers, votes.embeds[row], points[row])
            for row, (question, _) in enumerate(readable)
        ]
