"""Accuracy of triples: the questions of a half asked of each, once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from catp.calibration.data.dataset import DataSet
from catp.calibration.data.halves import Half, half
from catp.calibration.encoder.answering import Asked, answer_all
from catp.calibration.fastest.bundles import COMMAND
from catp.calibration.fastest.progress import Cell, ProgressFile
from catp.calibration.fastest.triples import Triple
from catp.runtime.errors import CatpError
from catp.runtime.image_sides.pruned_encoder import EncoderWish
from catp.runtime.pipeline import Pipeline


@dataclass
class Asker:
    """Questions asked of triples; what was answered before is not asked again.

    Args:
        pipelines: by the names of bundles.
        progress: where results are kept; None: nowhere.
        advance: called with the number of questions just done, of one encoder with all ratios after it.
    """

    pipelines: Mapping[str, Pipeline]
    asked: DataSet
    seed: int
    batch_size: int
    progress: ProgressFile | None = None
    advance: Callable[[int], None] = lambda done: None
    _cells: dict[tuple[Half, Triple], Cell] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for cell in self.progress.cells if self.progress is not None else ():
            self._cells[cell.half, _key(cell.triple)] = cell

    def encoders(self, which: Half, triples: Iterable[Triple]) -> int:
        """Encoders that are still to be gone through, each with all questions of the half."""
        return len(self._left(which, triples))

    def ask(self, which: Half, triples: Sequence[Triple]) -> list[Cell]:
        """The answers of each triple on a half, all about the same questions.

        Raises:
            CatpError: no question could be asked, or not the same ones of all.
        """
        for of_encoder in self._left(which, triples).values():
            pipeline = self.pipelines[of_encoder[0].bundle]
            asked = [Asked(pipeline, EncoderWish(kept_tokens=one.kept_tokens), one.ratio) for one in of_encoder]
            questions = half(self.asked, self.seed, which)
            found = answer_all(questions, asked, self.asked.metric, self.batch_size, self.advance)
            cells = [
                Cell(
                    half=which,
                    triple=triple,
                    right=tuple(found.right[:, place].tolist()),
                    images=found.images,
                    skipped=found.skipped,
                    tokens_kept=None if found.tokens_kept is None else float(found.tokens_kept[place]),
                )
                for place, triple in enumerate(of_encoder)
            ]
            if self.progress is not None:
                self.progress.add(cells)
            self._cells |= {(which, _key(cell.triple)): cell for cell in cells}
        cells = [self._cells[which, _key(triple)] for triple in triples]
        if len({cell.images for cell in cells}) > 1:
            raise CatpError(
                f"{COMMAND}: not the same questions could be asked of {triples[0]} and of all others: a picture "
                "changed meanwhile; start anew with another --progress file"
            )
        return cells

    def _left(self, which: Half, triples: Iterable[Triple]) -> dict[tuple[object, ...], list[Triple]]:
        """Triples without an answer, by encoder: a picture is encoded once for all ratios after it."""
        found: defaultdict[tuple[object, ...], list[Triple]] = defaultdict(list)
        for triple in triples:
            if (which, _key(triple)) not in self._cells:
                found[triple.bundle, triple.kept_tokens].append(triple)
        return dict(found)


def _key(triple: Triple) -> Triple:
    """The part that its answers depend on: not the share by which its schedule was asked for."""
    return triple.model_copy(update={"encoder_flops": None})


def right_of(cell: Cell) -> np.ndarray:
    """How right each answer is, float64 [Q]."""
    return np.array(cell.right, np.float64)
