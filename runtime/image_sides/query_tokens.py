"""Results of vision encoder and Q-Former: images, encoded, and the query tokens that are kept of each."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from catp.runtime.bundle.manifest import LAYER_POINTS
from catp.runtime.errors import GraphError
from catp.runtime.providers.base import Value, to_host


@dataclass(frozen=True)
class Pruned:
    """The tokens that the language model reads of a batch of images or videos, in the engine's memory."""

    kept_indices: Value  # int64 [B, k]; of query tokens ascending, of image tokens -1 for one merged of several
    kept_embeds: Value  # [B, k, Dl]
    frames: int = 1  # whose tokens stand one after another in each row
    temperature: float | None = (
        None  # by which a vision encoder in the dynamic form counted; a question encoder does too
    )

    @functools.cached_property
    def indices(self) -> np.ndarray:
        """kept_indices in host memory."""
        return to_host(self.kept_indices)

    def kept_of(self, row: int) -> list[int]:
        """Indices of a row's kept tokens, ascending; those that were merged of several are none of them."""
        return kept_of_rows(self.indices[row : row + 1])[0]

    def check(self, rows: int, kept: int, queries: int) -> None:
        """Raises GraphError where the indices are not those of `kept` query tokens of each row, ascending, or the
        embeddings not theirs."""
        indices = self.indices
        sound = indices.shape == (rows, kept) and tuple(self.kept_embeds.shape[:2]) == (rows, kept)
        if not sound or indices.min() < 0 or indices.max() >= queries or (np.diff(indices) <= 0).any():
            raise GraphError(
                "qformer_voting", f"it keeps not {kept} of {queries} query tokens for each of {rows} images"
            )

    def joined(self, frames: int, queries: int) -> Pruned:
        """Rows of so many frames each, F x k tokens in a row; query token i of frame f becomes f * queries + i.

        In host memory, but for single frames: a tensor of an engine has one shape.

        Args:
            queries: how many query tokens a frame has before pruning.
        """
        if frames == 1:
            return self
        indices, embeds = self.indices, to_host(self.kept_embeds)
        rows, first = len(indices) // frames, np.arange(frames)[:, None] * queries
        return Pruned(
            (indices.reshape(rows, frames, -1) + first).reshape(rows, -1),
            embeds.reshape(rows, -1, embeds.shape[2]),
            frames,
        )


def kept_of_rows(indices: np.ndarray) -> list[list[int]]:
    """The kept tokens of each row of kept_indices int64 [B, k], ascending; merged ones, -1, are none of them."""
    return [sorted(index for index in row if index >= 0) for row in indices.tolist()]


Encoded = Mapping[str, Value]
"""What the Q-Former reads, by name: the vision encoder's image_embeds [B, I, Dv], image_weights [B, I] where the vote
reads them, and instruction_ids and instruction_mask int64 [B, T] where it reads the prompt."""


@dataclass(frozen=True)
class Votes:
    """Every query token of a batch with its scores."""

    embeds: np.ndarray  # [B, N, Dl]
    outputs: dict[str, np.ndarray]  # token_scores float32 [B, N], and the diagnostics where the bundle has them
    frames: int = 1  # whose tokens stand one after another in each row

    @property
    def scores(self) -> np.ndarray:
        """float32 [B, N], by the bundle's own method."""
        return self.outputs["token_scores"]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return int(self.embeds.nbytes + sum(output.nbytes for output in self.outputs.values()))

    def joined(self, frames: int) -> Votes:
        """Rows of so many frames each, F x N tokens in a row; query token i of frame f becomes f * N + i.

        Of the outputs, scores go along, and the points of each layer, which become [B, L, F x N].
        """
        if frames == 1:
            return self
        rows, queries = len(self.embeds) // frames, self.embeds.shape[1]
        outputs: dict[str, np.ndarray] = {
            name: output.reshape(rows, -1) for name, output in self.outputs.items() if output.shape[1:] == (queries,)
        }
        if (points := self.outputs.get(LAYER_POINTS)) is not None:
            layers = points.shape[1]
            outputs[LAYER_POINTS] = points.reshape(rows, frames, layers, -1).swapaxes(1, 2).reshape(rows, layers, -1)
        return Votes(self.embeds.reshape(rows, frames * queries, -1), outputs, frames)

    def keep(self, indices: np.ndarray, rows: np.ndarray | None = None) -> Pruned:
        """The query tokens `indices` int64 [b, k] of the images `rows` int64 [b] (None: all of them, in order)."""
        rows = np.arange(len(self.embeds)) if rows is None else rows
        return Pruned(indices, self.embeds[rows[:, None], indices], self.frames)


@dataclass(frozen=True)
class Remembered:
    """An image or the frames of a video, encoded, in host memory: the rest is computed anew for each ratio."""

    encoded: dict[str, np.ndarray]  # as Encoded has it

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return int(sum(array.nbytes for array in self.encoded.values()))


Seen = Votes | Remembered
"""A picture that was seen before: enough to answer about it at every ratio, as if it were seen anew."""
