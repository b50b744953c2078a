"""The search: every graph timed in every place in the same rounds, then answers compared with those of the CPU."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from catp.calibration.accuracy.asking import USUAL
from catp.calibration.benchmark.timing.intervals import Ratio, paired_ratio
from catp.calibration.benchmark.timing.rounds import SETTLE_SECONDS
from catp.calibration.data.dataset import VqaExample
from catp.calibration.placement.engines import Composition, Engines, Inputs
from catp.runtime.bundle.generation_settings import GREEDY
from catp.runtime.bundle.placements import ON_CPU, Place
from catp.runtime.errors import CatpError
from catp.runtime.pipeline import Pipeline
from catp.runtime.providers.base import Engine
from catp.runtime.providers.onnx_runtime import OrtEngine

WARMUP = 3
"""Untimed runs of each engine."""


@dataclass(frozen=True)
class Measured:
    """One graph in one place."""

    graph: str
    place: Place
    milliseconds: float  # median
    ratio: Ratio | None  # to the CPU's provider in the same rounds; None of that provider itself
    chosen: bool = False
    refused: str | None = None  # why it was not chosen, though faster

    @property
    def is_faster(self) -> bool:
        """Whether it takes less time than the CPU's provider, beyond doubt."""
        return self.ratio is not None and self.ratio.is_clear and self.ratio.median < 1


@dataclass(frozen=True)
class Answered:
    """Everything of an answer that must not change with the place."""

    token_ids: list[int]
    kept_indices: list[int]


def answers(pipeline: Pipeline, questions: Sequence[VqaExample]) -> list[Answered]:
    """Greedy answers, one question at a time, with what is kept of each picture by the bundle's default."""
    found = []
    for question in questions:
        prompt = USUAL.prompt(pipeline.manifest, question)
        (answer,) = pipeline.generate([question.image], [prompt], settings=GREEDY)
        found.append(Answered(answer.token_ids, answer.kept_indices))
    return found


def first_calls(engines: Engines, question: VqaExample) -> dict[str, Inputs]:
    """Inputs of the first call of every graph that keeps no cache, while one question is answered on the CPU."""
    seen: dict[str, list[Inputs]] = {}
    answers(Pipeline(engines.bundle, Composition(engines, {}, seen)), [question])
    return {graph: calls[0] for graph, calls in seen.items() if calls}


def time_graph(
    engines: Engines,
    graph: str,
    inputs: Inputs,
    places: Sequence[Place],
    rounds: int,
    seed: int,
    advance: Callable[[], None] = lambda: None,
) -> list[Measured]:
    """Durations of a graph in the CPU's provider and in those places that load it, once per round, in an order drawn
    anew.

    Raises:
        GraphError: a provider can't run it.
    """
    loaded: dict[Place, Engine] = {ON_CPU: engines.engine(graph, ON_CPU)}
    for place in places:
        engine = engines.engine(graph, place)
        if isinstance(engine, OrtEngine):
            engines.drop(graph, place)  # the provider left it to ONNX Runtime, and has said so
        else:
            loaded[place] = engine
    steps = {place: engine.bind(inputs) for place, engine in loaded.items()}
    for step in steps.values():
        for _ in range(WARMUP):
            step.run()
    order = random.Random(seed)
    taken: dict[Place, list[float]] = {place: [] for place in steps}
    for _ in range(rounds):
        for place in order.sample(list(steps), len(steps)):
            time.sleep(SETTLE_SECONDS)
            began = time.perf_counter()
            steps[place].run()
            taken[place].append(1e3 * (time.perf_counter() - began))
        advance()
    return [
        Measured(
            graph,
            place,
            float(np.median(milliseconds)),
            None if place == ON_CPU else paired_ratio(milliseconds, taken[ON_CPU], seed),
        )
        for place, milliseconds in taken.items()
    ]


def choose(
    engines: Engines, measured: Sequence[Measured], questions: Sequence[VqaExample]
) -> tuple[dict[str, Place], list[Measured]]:
    """The fastest place of each graph with which every question has the answer that it has on the CPU.

    Returns places by graph, the CPU's left out, and the measurements with what became of each.

    Raises:
        CatpError: each choice alone changes no answer, and all of them together do.
    """
    wanted = answers(Pipeline(engines.bundle, Composition(engines, {})), questions)
    chosen: dict[str, Place] = {}
    judged: list[Measured] = []
    for graph in dict.fromkeys(found.graph for found in measured):
        for found in sorted((one for one in measured if one.graph == graph), key=lambda one: one.milliseconds):
            changed = 0
            if found.is_faster and graph not in chosen:
                changed = _changed(engines, {graph: found.place}, questions, wanted)
                if changed == 0:
                    chosen[graph] = found.place
            if found.place not in (ON_CPU, chosen.get(graph)):
                engines.drop(graph, found.place)
            judged.append(replace(found, refused=f"{changed} of {len(questions)} answers change" if changed else None))
    if len(chosen) > 1 and (changed := _changed(engines, chosen, questions, wanted)):
        raise CatpError(
            f"{', '.join(chosen)}: each alone changes no answer, and together {changed} of {len(questions)} change; "
            "nothing was written. Measure with a finer --precision"
        )
    return chosen, [replace(one, chosen=one.place == chosen.get(one.graph, ON_CPU)) for one in judged]


def _changed(
    engines: Engines, places: Mapping[str, Place], questions: Sequence[VqaExample], wanted: Sequence[Answered]
) -> int:
    """How many answers are others than those wanted, with these places."""
    found = answers(Pipeline(engines.bundle, Composition(engines, places)), questions)
    return sum(ours != theirs for ours, theirs in zip(found, wanted, strict=True))
