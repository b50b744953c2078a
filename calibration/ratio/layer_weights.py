"""Weights of the cross-attention layers, learned on questions: how much each layer's rank points should count."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from catp.calibration.accuracy.answering import frames_in, in_batches, read_images, read_prompt, votes_about
from catp.calibration.data.dataset import VqaExample
from catp.calibration.data.metrics import JUDGES, Metric
from catp.runtime.bundle.manifest import LAYER_POINTS, Positions
from catp.runtime.errors import CatpError, UsageError
from catp.runtime.image_sides.query_tokens import Pruned, Votes
from catp.runtime.pipeline import Pipeline
from catp.runtime.pruning import joined_frames, top_indices

TRIED = (0.0, 0.5, 1.0, 2.0)
"""Weights that are tried for a layer, with the others as they are."""

MOST = 500
"""Questions that weights are learned on: their query tokens are all held in memory."""

MOST_FRAMES = 4 * MOST
"""Frames of videos after which no more questions are read, for the same reason."""


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
    embeds: np.ndarray  # [F x N, Dl]
    points: np.ndarray  # [L, F x N]
    frames: int  # F, of a video; an image is one


class LayerWeights:
    """Learns by coordinate search: layer by layer, the weight that answers most questions right at one ratio.

    One pass from all weights 1, so a layer more costs three evaluations more, and little is fitted to the questions.
    A weight is only changed where that is better, not where it is as good.

    Args:
        questions: of which the first MOST are used, fewer about videos of more than four frames; those that can't be
            asked are left out.
        kept: how many tokens are kept, of a video those of each frame.

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
        self._cases: list[_Case] = []
        for batch in in_batches(islice(questions, MOST), batch_size):
            self._cases += self._read(batch)
            if sum(case.frames for case in self._cases) >= MOST_FRAMES:
                break
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
        found = np.zeros(len(self._cases))
        limit = self._pipeline.manifest.text.max_new_tokens
        alike: defaultdict[int, list[int]] = defaultdict(list)
        for number, case in enumerate(self._cases):
            alike[case.frames].append(number)
        for numbers in alike.values():
            for start in range(0, len(numbers), self._batch_size):
                places = numbers[start : start + self._batch_size]
                part = [self._cases[place] for place in places]
                prompts = [case.prompt for case in part]
                generation = self._pipeline.decode(self._keep(part, weights), prompts, limit, self._positions)
                texts = map(self._pipeline.detokenize, generation.token_ids)
                found[places] = [self._judge(text, case.answers) for text, case in zip(texts, part)]
        return found

    def _keep(self, part: Sequence[_Case], weights: Sequence[float]) -> Pruned:
        """The tokens with the highest weighted points, of each frame alone. Args: part: of equally many frames."""
        frames, queries = part[0].frames, self._pipeline.manifest.tokens
        scores = np.stack([np.tensordot(np.array(weights), case.points, 1) for case in part])
        of_frames = top_indices(scores.reshape(-1, queries), self._kept)
        embeds = np.stack([case.embeds for case in part])
        return Votes(embeds, {}, frames).keep(np.stack(joined_frames(list(of_frames), frames, queries)))

    def _read(self, batch: list[VqaExample]) -> list[_Case]:
        """Every image once, or every question where votes depend on it; what Answerer skips is skipped here."""
        pixels, errors = read_images(self._pipeline, batch)
        read: dict[int, _Case] = {}
        alike: defaultdict[int, list[tuple[int, list[int]]]] = defaultdict(list)
        for number, question in enumerate(batch):
            if question.image_key not in errors:
                frames = frames_in(self._pipeline, pixels[question.image_key])
                ids, unread = read_prompt(self._pipeline, question, frames=frames)
                if unread is None:
                    alike[frames].append((number, ids))
        for frames, asked in alike.items():
            questions = [batch[number] for number, _ in asked]
            votes, rows = votes_about(self._pipeline, questions, pixels, self._batch_size)
            points = votes.outputs[LAYER_POINTS]
            for (number, ids), question, row in zip(asked, questions, rows):
                answers, key = question.answers, question.image_key
                read[number] = _Case(ids, answers, key, votes.embeds[row], points[row], frames)
        return [read[number] for number in sorted(read)]
