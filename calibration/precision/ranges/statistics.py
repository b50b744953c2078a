"""Statistics of activations: extremes and histograms, question by question, and the ranges chosen from them."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from onnxruntime.quantization.calibrate import HistogramCollector

from catp.calibration.precision.formats.base import Range
from catp.calibration.precision.graphs.layers import exclude_options
from catp.runtime.errors import CatpError

RangeMethod = Literal["minmax", "entropy", "percentile"]
PERCENTILE = 99.99

_BINS = {"minmax": 0, "entropy": 128, "percentile": 2048}
"""Of a histogram, as onnxruntime.quantization chooses them."""

_MOST_GROWTH = 64
"""Times as many bins as at first that a histogram may come to have, as larger values than the first ones are seen."""

_SMALLEST = float(np.finfo(np.float32).tiny) * 2 * max(_BINS.values())
"""The largest value of a histogram has to be larger, or there are no numbers between its bins."""


class Statistics:
    """Statistics of the inputs of layers, by tensor.

    Histograms and what is read from them are onnxruntime.quantization's (HistogramCollector).

    Args:
        method: minmax takes the extremes; entropy and percentile cut rare values off, for finer steps elsewhere.
        percentile: what percentile keeps, in per cent.
        readers: by tensor, the layers that read it, for messages.
    """

    def __init__(
        self, method: RangeMethod, percentile: float = PERCENTILE, readers: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        self.method = method
        self._readers = readers or {}
        self.asked = 0  # questions that what was added came from; the caller counts them
        self._extremes: dict[str, tuple[float, float]] = {}
        self._histograms = HistogramCollector(method, False, _BINS[method], 128, percentile, "same")

    def add(self, tensor: str, values: np.ndarray) -> None:
        """Raises CatpError where a value is no number or infinite."""
        if not values.size:
            return
        values = values.astype(np.float32, copy=False)
        low, high = float(values.min()), float(values.max())
        if not np.isfinite(low + high):
            raise CatpError(
                f"{tensor}: activations that are no number, or infinite: a scale can't be chosen for them; check that "
                "catp-run gives sensible answers with this bundle (fp16 overflows where fp32 does not), or leave out "
                f"{self._reading(tensor)}"
            )
        known = self._extremes.get(tensor, (low, high))
        self._extremes[tensor] = min(low, known[0]), max(high, known[1])
        if self.method != "minmax":
            largest = max(-low, high)
            self._widen(tensor, largest)
            self._histograms.collect_value({tensor: values if largest > _SMALLEST else np.zeros_like(values)})

    def _widen(self, tensor: str, largest: float) -> None:
        """Take coarser bins where what was seen so far is next to nothing beside `largest`.

        HistogramCollector adds bins as fine as the first ones, and values of 1e-6 may be followed by some of 100.
        """
        known = self._histograms.histogram_dict.get(tensor)
        if known is None or not known[4] or len(known[0]) * largest <= _MOST_GROWTH * _BINS[self.method] * known[4]:
            return
        counts, edges, low, high, threshold = known
        middles = (edges[:-1] + edges[1:]) / 2
        coarse, edges = np.histogram(middles, _BINS[self.method], range=(-largest, largest), weights=counts)
        threshold = np.array(largest, threshold.dtype)
        self._histograms.histogram_dict[tensor] = (coarse.astype(counts.dtype), edges, low, high, threshold)

    def ranges(self) -> dict[str, Range]:
        """By tensor.

        Raises:
            CatpError: a tensor never changed, so a scale can't be chosen for it.
        """
        for tensor, (low, high) in self._extremes.items():
            if low == high:
                raise CatpError(
                    f"{tensor}: it was {low:g} everywhere in all samples, so a scale can't be chosen for it; give more "
                    f"varied data, or leave out {self._reading(tensor)}"
                )
        if self.method == "minmax":
            return {tensor: Range(*extremes) for tensor, extremes in self._extremes.items()}
        with contextlib.redirect_stdout(io.StringIO()):  # it reports its progress there
            chosen = self._histograms.compute_collection_result()
        ends = {tensor: (float(found[0]), float(found[1])) for tensor, found in chosen.items()}
        # Where nearly all values are the same, a range without the rare ones is none.
        return {
            tensor: Range(low, high) if low < high else Range(*self._extremes[tensor])
            for tensor, (low, high) in ends.items()
        }

    def _reading(self, tensor: str) -> str:
        names = self._readers.get(tensor)
        return f"what reads it: {exclude_options(names)}" if names else "the layers that read it (--exclude)"

    def save(self, path: Path, done: int) -> None:
        """Write what was gathered when `done` questions were behind, in one step."""
        arrays: dict[str, Any] = {"done": np.array(done), "asked": np.array(self.asked)}
        arrays["extremes"] = np.array(json.dumps(self._extremes))
        names = list(self._histograms.histogram_dict)
        arrays["histograms"] = np.array(json.dumps(names))
        for index, name in enumerate(names):
            for part, array in enumerate(self._histograms.histogram_dict[name]):
                arrays[f"{index}.{part}"] = np.asarray(array)
        temporary = path.with_suffix(".part")
        with temporary.open("wb") as file:
            np.savez(file, **arrays)
        temporary.replace(path)

    def load(self, path: Path) -> int:
        """Read what `save` wrote; how many questions were behind."""
        with np.load(path, allow_pickle=False) as arrays:
            done, self.asked = int(arrays["done"]), int(arrays["asked"])
            self._extremes = {name: tuple(pair) for name, pair in json.loads(str(arrays["extremes"])).items()}
            self._histograms.histogram_dict = {
                name: tuple(arrays[f"{index}.{part}"] for part in range(5))
                for index, name in enumerate(json.loads(str(arrays["histograms"])))
            }
            return done


def to_json(ranges: Mapping[str, Range]) -> dict[str, list[float]]:
    return {tensor: [seen.low, seen.high] for tensor, seen in ranges.items()}


def from_json(content: Mapping[str, list[float]]) -> dict[str, Range]:
    return {tensor: Range(*pair) for tensor, pair in content.items()}
