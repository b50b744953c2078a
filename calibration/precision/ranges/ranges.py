"""Ranges of activations: gathered in the real chain, kept for the next run, and resumed after an interruption."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

from catp.calibration.data.dataset import VqaExample
from catp.calibration.precision.formats.base import Range
from catp.calibration.precision.graphs.graph import FloatGraph
from catp.calibration.precision.graphs.layers import Layer
from catp.calibration.precision.memory import is_tight
from catp.calibration.precision.ranges.observation import Gather, ObservingProvider, answer_each
from catp.calibration.precision.ranges.statistics import PERCENTILE, RangeMethod, Statistics, from_json, to_json
from catp.runtime.bundle.folder import Bundle
from catp.runtime.errors import CatpError
from catp.runtime.pipeline import Pipeline
from catp.runtime.pruning import num_kept
from catp.runtime.system.cache import cache_folder

SAVE_EVERY = 32
"""Questions; as many, at most, are asked again after an interruption."""

_RULES = 2
"""Version of how ranges are chosen: those in the cache that were chosen otherwise are not used."""

GraphRanges = dict[str, dict[str, Range]]
"""By graph and tensor."""


@dataclass(frozen=True)
class Gathered:
    """Ranges, and from how many questions they come: some can't be asked."""

    ranges: GraphRanges
    samples: int


@dataclass(frozen=True)
class Sampling:
    """The settings that decide ranges, beside the graphs."""

    questions: Sequence[VqaExample]
    data: str
    digest: str  # of the data set
    seed: int
    method: RangeMethod
    percentile: float = PERCENTILE


def gather_ranges(
    bundle: Bundle,
    graphs: Mapping[str, FloatGraph],
    layers: Mapping[str, Sequence[Layer]],
    sampling: Sampling,
    advance: Callable[[int], None],
) -> Gathered:
    """Ask the bundle, and note what its layers read: alternately all query tokens and the pruned prefix.

    What an earlier run gathered for the same graphs and questions is used; one that was interrupted goes on.

    Args:
        layers: by graph, those whose input is looked at.
        advance: called with the number of questions done since the last call.

    Raises:
        CatpError: activations that no scale can be chosen for, no question could be asked, or the cache can't be
            written.
    """
    folder = cache_folder("ranges")
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    key = _key(bundle, layers, sampling)
    finished, unfinished = folder / f"{key}.json", folder / f"{key}.npz"
    if (known := _read(finished)) is not None:
        advance(len(sampling.questions))
        return known
    readers: dict[str, list[str]] = {}
    for graph, chosen in layers.items():
        for layer in chosen:
            readers.setdefault(f"{graph}: {layer.input}", []).append(layer.name)
    statistics = Statistics(sampling.method, sampling.percentile, readers)
    done = _resume(statistics, unfinished)
    advance(done)
    observer = Gather(lambda graph, tensor, values: statistics.add(f"{graph}: {tensor}", values))
    pipeline = Pipeline(bundle, ObservingProvider(graphs, layers, observer, is_tight(bundle)))
    tokens, vote = bundle.manifest.tokens, bundle.manifest.vote
    kept = (tokens,) if vote is None or vote.method == "none" else (tokens, num_kept(vote.ratio or 0.5, tokens))
    saved = done
    for behind in answer_each(pipeline, sampling.questions, kept, done):
        advance(behind - done)
        done = behind
        statistics.asked += 1
        if done - saved >= SAVE_EVERY:
            with _writing(folder, unfinished.with_suffix(".part")):
                statistics.save(unfinished, done)
            saved = done
    if not statistics.asked:
        raise CatpError(
            f"data {sampling.data}: none of the samples could be asked; catp-eval on the same data says why"
        )
    found: GraphRanges = {graph: {} for graph in layers}
    for name, seen in statistics.ranges().items():
        graph, tensor = name.split(": ", 1)
        found[graph][tensor] = seen
    temporary = finished.with_suffix(".part")
    by_graph = {graph: to_json(ranges) for graph, ranges in found.items()}
    with _writing(folder, temporary):
        temporary.write_text(json.dumps({"samples": statistics.asked, "ranges": by_graph}))
        temporary.replace(finished)
    unfinished.unlink(missing_ok=True)
    return Gathered(found, statistics.asked)


@contextmanager
def _writing(folder: Path, part: Path | None = None) -> Iterator[None]:
    """Where it can't be written, the cache is named, which may be on another disk than the output; no part is left."""
    try:
        yield
    except OSError as error:
        if part is not None:
            part.unlink(missing_ok=True)
        raise CatpError(f"{folder}: can't be written ({error.strerror}); name another with CATP_CACHE_DIR") from None


def _key(bundle: Bundle, layers: Mapping[str, Sequence[Layer]], sampling: Sampling) -> str:
    specs = bundle.manifest.graphs.values()
    content = (
        _RULES,
        [(spec.file.sha256, spec.external_data.sha256 if spec.external_data else "") for spec in specs],
        bundle.manifest.vote.model_dump(mode="json") if bundle.manifest.vote else None,
        {graph: sorted({layer.input for layer in chosen}) for graph, chosen in layers.items()},
        [question.id for question in sampling.questions],
        (sampling.data, sampling.digest, sampling.seed, sampling.method, sampling.percentile),
    )
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]


def _read(path: Path) -> Gathered | None:
    try:
        content = json.loads(path.read_text())
        ranges = {graph: from_json(ranges) for graph, ranges in content["ranges"].items()}
        return Gathered(ranges, int(content["samples"]))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # not there, or not ours: it is gathered again
        return None


def _resume(statistics: Statistics, path: Path) -> int:
    try:
        return statistics.load(path)
    except (OSError, EOFError, ValueError, KeyError, BadZipFile):
        return 0
