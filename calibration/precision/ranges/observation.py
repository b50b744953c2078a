"""The real chain, with what its layers read opened while it answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from catp.calibration.accuracy.answering import frames_in, pictures_of, read_prompt
from catp.calibration.accuracy.asking import USUAL
from catp.calibration.data.dataset import VqaExample
from catp.calibration.data.fitting import finds_texts, judges_pairs
from catp.calibration.precision.graphs.graph import TAP, FloatGraph, serialized
from catp.calibration.precision.graphs.layers import Layer
from catp.calibration.retrieval.evaluation import read_as_evaluated
from catp.runtime.bundle.folder import Bundle
from catp.runtime.errors import ImageError
from catp.runtime.pipeline import Pipeline
from catp.runtime.providers.base import DeviceTensor, Engine, Moment, Step, Value, to_host
from catp.runtime.providers.onnx_runtime import OrtProvider

Inputs = dict[str, np.ndarray]
"""Of one call of a graph, by name."""


class Observer:
    """Looks at calls; what it does not want to see, it leaves as it is."""

    def inputs(self, graph: str, inputs: Mapping[str, Value]) -> None:
        """Called when a graph's inputs are bound."""

    def activations(self, graph: str, tensor: str, values: np.ndarray) -> None:
        """Called with what a layer read; a view, valid during the call."""


class ObservingProvider:
    """ONNX Runtime on the CPU, every graph of which shows its calls to an observer.

    Args:
        layers: by graph, the layers whose inputs are shown.
        mapped: leave weights in their files, as `OrtProvider` does.
    """

    name = "cpu"

    def __init__(
        self,
        graphs: Mapping[str, FloatGraph],
        layers: Mapping[str, Sequence[Layer]],
        observer: Observer,
        mapped: bool = False,
    ) -> None:
        self._provider = OrtProvider("cpu", mapped=mapped)
        self._graphs = graphs
        self._layers = layers
        self._observer = observer

    def engine(self, bundle: Bundle, graph: str) -> Engine:
        if self._layers.get(graph):
            tapped = serialized(self._graphs[graph].tapped(self._layers[graph]))
            engine: Engine = self._provider.engine_in_memory(tapped, bundle.path)
        else:
            engine = self._provider.engine(bundle, graph)
        return _ObservedEngine(engine, graph, self._observer)

    def synchronize(self) -> None:
        self._provider.synchronize()

    def moment(self) -> Moment:
        return self._provider.moment()


class _ObservedEngine:
    def __init__(self, engine: Engine, graph: str, observer: Observer) -> None:
        self._engine, self._graph, self._observer = engine, graph, observer
        self.only_profiles = engine.only_profiles
        self.zeros = engine.zeros
        self.copy_rows = engine.copy_rows
        self.cache_slots = engine.cache_slots

    def bind(self, inputs: Mapping[str, Value], outputs: Mapping[str, DeviceTensor] | None = None) -> Step:
        self._observer.inputs(self._graph, inputs)
        return _ObservedStep(self._engine.bind(inputs, outputs), self._graph, self._observer)


class _ObservedStep:
    def __init__(self, step: Step, graph: str, observer: Observer) -> None:
        self._step, self._graph, self._observer = step, graph, observer
        self.update = step.update

    def run(self) -> dict[str, DeviceTensor]:
        outputs = self._step.run()
        for name in [name for name in outputs if name.startswith(TAP)]:
            self._observer.activations(self._graph, name.removeprefix(TAP), outputs.pop(name).numpy())
        return outputs


def answer_each(
    pipeline: Pipeline, questions: Sequence[VqaExample], kept: Sequence[int], start: int = 0
) -> Iterator[int]:
    """Answer questions one by one, so that no padding is seen; after each that could be asked, how many are behind it.

    Args:
        start: the first question that is asked.
        kept: how many query tokens the language model reads, of a video those of each frame, in turns.
    """
    finds = finds_texts(pipeline.manifest)
    for index, question in enumerate(questions[start:], start):
        try:
            pixel_values = pipeline.preprocess(pictures_of(pipeline.manifest, question))
        except ImageError:
            continue
        frames = frames_in(pipeline, pixel_values)
        token_ids: list[int] = []
        if not finds:
            token_ids, unread = read_prompt(pipeline, question, frames=frames)
            if unread:
                continue
        votes_on = [USUAL.prompt(pipeline.manifest, question)] * frames if pipeline.manifest.reads_instruction else []
        encoded = pipeline.encode(pixel_values, votes_on)
        if judges_pairs(pipeline.manifest):
            pipeline.judge_encoded(encoded, [token_ids], [0])
            yield index + 1
            continue
        pruned = pipeline.prune(encoded, kept[index % len(kept)]).joined(frames, pipeline.manifest.tokens)
        if finds:
            texts, _ = read_as_evaluated(pipeline, [question.question])
            pipeline.matching.score(pipeline.matching.see(encoded, pruned), texts)
        else:
            pipeline.decode(pruned, [token_ids], pipeline.manifest.text.max_new_tokens)
        yield index + 1


class Examples(Observer):
    """Keeps a copy of the inputs of every call."""

    def __init__(self) -> None:
        self.calls: dict[str, list[Inputs]] = {}

    def inputs(self, graph: str, inputs: Mapping[str, Value]) -> None:
        self.calls.setdefault(graph, []).append({name: to_host(value).copy() for name, value in inputs.items()})


class Gather(Observer):
    """Hands what layers read to whoever adds it up."""

    def __init__(self, add: Callable[[str, str, np.ndarray], None]) -> None:
        self._add = add

    def activations(self, graph: str, tensor: str, values: np.ndarray) -> None:
        self._add(graph, tensor, values)
