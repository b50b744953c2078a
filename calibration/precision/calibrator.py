"""The calibration of a bundle: ranges, layers, search, confirmation, publication."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from catp.calibration.data.dataset import DataSet, VqaExample
from catp.calibration.data.halves import half
from catp.calibration.data.matched import DemoPictures, PictureList
from catp.calibration.data.metrics import Metric
from catp.calibration.precision.assembly import Fragments, assemble
from catp.calibration.precision.budget import Budget, BudgetExceeded, counted, most_sensitive, possible_loss
from catp.calibration.precision.comparison import (
    BundleAnswers,
    accuracy_changes,
    ask,
    kept_overlap,
    no_answers,
    patch_overlap,
)
from catp.calibration.precision.graphs.graph import FloatGraph
from catp.calibration.precision.graphs.layers import Layer, matching
from catp.calibration.precision.memory import is_tight
from catp.calibration.precision.ranges.observation import Examples, ObservingProvider, answer_each
from catp.calibration.precision.ranges.ranges import Gathered, GraphRanges, Sampling, gather_ranges
from catp.calibration.precision.ranges.statistics import PERCENTILE, RangeMethod
from catp.calibration.precision.recipe import Recipe, recipe_of
from catp.calibration.precision.report import GraphSize, PrecisionReport, Trial
from catp.calibration.precision.search.search import fewest_kept
from catp.calibration.precision.search.sensitivity import LayerError, layer_errors
from catp.runtime.bundle.chains import made_from
from catp.runtime.bundle.folder import Bundle, write_manifest
from catp.runtime.bundle.manifest import CalibrationSpec, Manifest
from catp.runtime.bundle.publish import published
from catp.runtime.errors import CatpError, UsageError
from catp.runtime.pipeline import Pipeline

FEWEST_SAMPLES = 16
"""Questions that ranges are chosen by."""

EXAMPLES = 4
"""Questions by which the error of single layers is measured."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, and how much of how much of it is."""


@dataclass(frozen=True)
class Questions:
    """Two halves of a data set that have no image in common.

    Raises:
        UsageError: there are too few samples to choose ranges by.
    """

    name: str
    digest: str
    metric: Metric
    samples: list[VqaExample]  # whose activations are looked at
    search: list[VqaExample]  # on which layers are chosen
    confirmation: list[VqaExample]
    texts: tuple[str, ...] = ()  # of pictures without captions, those that the best is looked for among

    def __post_init__(self) -> None:
        if len(self.samples) < FEWEST_SAMPLES:
            raise UsageError(
                f"data {self.name}: {len(self.samples)} samples are too few to choose ranges by; give at least "
                f"{FEWEST_SAMPLES} with --samples, and questions about enough pictures: half of the pictures are for "
                f"comparing, and these are about {pictures(self.samples)}"
            )
        if not self.confirmation:
            raise UsageError(
                f"data {self.name}: nothing is left to compare the bundles on: no picture is in both halves, and the "
                f"{counted(len(self.search), pictures(self.search))} are one; give questions about more pictures"
            )


def pictures(questions: Sequence[VqaExample]) -> int:
    """How many different ones questions are about."""
    return len({question.image_key for question in questions})


def split(data: DataSet, samples: int, questions: int, seed: int) -> Questions:
    """`samples` questions to calibrate by, and `questions` for each comparison; fewer where there are no more."""
    enough = max(samples, questions)
    drawn = data.subset(3 * enough, None, seed)
    while True:
        calibration = list(islice(half(drawn, seed, "search"), enough))
        confirmation = list(islice(half(drawn, seed, "confirmation"), questions))
        # Halves are drawn by image, so they are equal only about; where an image has many questions, hardly that.
        if (len(calibration) == enough and len(confirmation) == questions) or len(drawn) == len(data):
            break
        drawn = data.subset(2 * len(drawn), None, seed)
    texts = drawn.texts if isinstance(drawn, DemoPictures | PictureList) else ()
    return Questions(
        data.name, drawn.digest(), data.metric, calibration[:samples], calibration[:questions], confirmation, texts
    )


class Calibrator:
    """One bundle on its way to another.

    Args:
        recipes: by graph; the other graphs stay as they are.
        exclude: patterns of layers that stay in floating point in any case.

    Raises:
        UsageError: a graph can't be quantised so, or a pattern fits no layer.
    """

    def __init__(
        self,
        source: Bundle,
        recipes: Mapping[str, Recipe],
        questions: Questions,
        *,
        seed: int = 0,
        method: RangeMethod = "minmax",
        percentile: float = PERCENTILE,
        exclude: Sequence[str] = (),
        batch_size: int = 8,
        progress: Progress = lambda what, done, total: None,
    ) -> None:
        self.source = source
        self.recipes = recipes
        self.questions = questions
        self._seed = seed
        self._method = method
        self._percentile = percentile
        self._batch_size = batch_size
        self._progress = progress
        for name, recipe in recipes.items():
            recipe.check(name, source.manifest.graphs[made_from(name)])
        self.graphs = {name: FloatGraph(name, source.graph_file(made_from(name))) for name in recipes}
        self.layers = self._choose(tuple(exclude))
        self._answers: dict[int, BundleAnswers] = {}
        self._failure = ""
        self.pictures = 0  # that confirmed what was found

    def run(
        self, output: Path, budget: Budget, *, sensitivity: bool = True, overwrite: bool = False
    ) -> PrecisionReport:
        """Calibrate, and publish the bundle if its cost is within the budget on the other half of the images as well.

        Args:
            output: the new bundle's folder.
            sensitivity: measure every layer's error even where all of them may be quantised.

        Raises:
            UsageError: `output` is taken, or the other half has too few pictures to confirm anything.
            BudgetExceeded: it costs too much, or may well do so; nothing was published.
            CatpError: activations that no scale can be chosen for, or no question could be asked.
        """
        asked = self.questions
        budget.check_pictures(asked.name, len(asked.confirmation), pictures(asked.confirmation))
        with published(output, overwrite) as folder:
            gathered = self._ranges()
            fragments = self._fragments(gathered.ranges)
            errors = self._errors(fragments) if sensitivity else ()
            trials: list[Trial] = []

            def fits(kept: Sequence[LayerError]) -> bool:
                trials.append(self._try(fragments, kept, budget, folder, len(trials)))
                return trials[-1].fits

            kept: Sequence[LayerError] | None = ()
            if not fits(()):
                errors = errors or self._errors(fragments)
                kept = fewest_kept(errors, fits)
            report = PrecisionReport(
                model=self.source.manifest.model,
                max_accuracy_drop=budget.max_accuracy_drop,
                min_kept_overlap=budget.min_kept_overlap,
                errors=tuple(errors),
                trials=tuple(trials),
            )
            if kept is None:
                raise BudgetExceeded(
                    f"even with every layer but one in floating point, quantising costs too much{self._failure}", report
                )
            manifest = self._assemble(fragments, kept, folder)
            report = self._confirm(report, manifest, gathered.samples, folder, budget)
            if not report.confirmed:
                raise BudgetExceeded(self._unconfirmed(report, budget), report, most_sensitive(report))
            write_manifest(folder, manifest.model_copy(update={"calibration": report.calibration}))
        return report

    def _choose(self, exclude: tuple[str, ...]) -> dict[str, tuple[Layer, ...]]:
        """By graph, the layers that may be quantised."""
        for pattern in exclude:
            if not any(True for graph in self.graphs.values() for _ in matching(graph.layers, (pattern,), graph.name)):
                some = ", ".join(graph.layers[0].name for graph in self.graphs.values())
                raise UsageError(f"exclude {pattern!r}: no layer is called so; layers have names such as {some}")
        chosen = {}
        for name, graph in self.graphs.items():
            excluded = set(matching(graph.layers, exclude, name))
            recipe = self.recipes[name]
            chosen[name] = tuple(layer for layer in graph.layers if layer not in excluded and recipe.takes(layer))
            if not chosen[name]:
                reason = "all are excluded" if excluded else f"none has whole blocks of {recipe.block_size} weights"
                raise UsageError(f"{name}: it has no layers to quantise to {recipe.format} ({reason})")
        return chosen

    def _ranges(self) -> Gathered:
        observed = {
            name: [layer for layer in layers if not layer.is_table]
            for name, layers in self.layers.items()
            if self.recipes[name].needs_ranges
        }
        if not observed:
            return Gathered({}, 0)
        asked = self.questions
        sampling = Sampling(asked.samples, asked.name, asked.digest, self._seed, self._method, self._percentile)
        advance = self._counter("observe activations", len(asked.samples))
        gathered = gather_ranges(self.source, self.graphs, observed, sampling, advance)
        if gathered.samples < FEWEST_SAMPLES:
            raise CatpError(
                f"data {asked.name}: only {gathered.samples} of {len(asked.samples)} samples could be asked, and "
                f"{FEWEST_SAMPLES} are the fewest to choose ranges by; catp-eval on the same data says why"
            )
        return gathered

    def _fragments(self, ranges: GraphRanges) -> dict[str, Fragments]:
        advance = self._counter("quantise layers", sum(map(len, self.layers.values())))
        fragments: dict[str, Fragments] = {}
        for name, layers in self.layers.items():
            fragments[name] = {}
            for layer in layers:
                recipe = recipe_of(self.recipes, name, layer)
                fragments[name][layer.name] = recipe.fragment(layer, ranges.get(name, {}))
                advance(1)
        return fragments

    def _errors(self, fragments: Mapping[str, Fragments]) -> tuple[LayerError, ...]:
        """The errors of all layers, the largest first."""
        examples = Examples()
        pipeline = Pipeline(self.source, ObservingProvider({}, {}, examples, is_tight(self.source)))
        tokens = self.source.manifest.tokens
        if not list(islice(answer_each(pipeline, self.questions.samples, (tokens,)), EXAMPLES)):
            raise CatpError(
                f"data {self.questions.name}: none of the samples could be asked; catp-eval on the same data says why"
            )
        advance = self._counter("measure layers", sum(map(len, fragments.values())))
        found = [
            error
            for name, graph in self.graphs.items()
            for error in layer_errors(
                graph, fragments[name], self.recipes[name].purpose, examples.calls[made_from(name)], lambda: advance(1)
            )
        ]
        return tuple(sorted(found, key=lambda error: -error.error))

    def _try(
        self, fragments: Mapping[str, Fragments], kept: Sequence[LayerError], budget: Budget, folder: Path, number: int
    ) -> Trial:
        with tempfile.TemporaryDirectory(dir=folder) as trial:
            self._assemble(fragments, kept, Path(trial))
            asked = self.questions.search
            before = self._ask(self.source.path, asked, "original bundle")
            after = self._ask_quantised(before, Path(trial), asked, f"quantised bundle, {len(kept)} layers kept")
        changes, overlap = accuracy_changes(before, after, self._seed), kept_overlap(before, after)
        return Trial(
            kept=tuple(f"{error.graph}: {error.layer}" for error in kept),
            accuracy=changes,
            kept_overlap=overlap,
            fits=budget.allows(changes, overlap),
        )

    def _confirm(
        self, report: PrecisionReport, manifest: Manifest, samples: int, folder: Path, budget: Budget
    ) -> PrecisionReport:
        asked = self.questions.confirmation
        before = self._ask(self.source.path, asked, "original bundle, other images")
        after = self._ask_quantised(before, folder, asked, "quantised bundle, other images")
        self.pictures = len(set(before.images))
        changes, overlap = accuracy_changes(before, after, self._seed), kept_overlap(before, after)
        old = self.source.manifest.graphs
        return report.model_copy(
            update={
                "graphs": {
                    name: GraphSize(before=old[made_from(name)].bytes, after=spec.bytes, quantization=spec.quantization)
                    for name, spec in manifest.graphs.items()
                },
                "calibration": CalibrationSpec(
                    source_sha256={name: spec.file.sha256 for name, spec in old.items()},
                    data=self.questions.name,
                    samples=samples,
                    seed=self._seed,
                    metric=self.questions.metric,
                    questions=len(before.images),
                    accuracy=changes,
                    kept_overlap=overlap,
                    patch_overlap=patch_overlap(before, after),
                ),
                "confirmed": budget.allows(changes, overlap) and budget.is_shown_by(changes),
            }
        )

    def _unconfirmed(self, report: PrecisionReport, budget: Budget) -> str:
        """Why, in words."""
        found = report.calibration
        assert found is not None
        if not budget.allows(found.accuracy, found.kept_overlap):
            return f"what was chosen on one half of the images costs too much on the other{self._failure}"
        lost = 100 * possible_loss(found.accuracy)
        about = counted(found.questions, self.pictures)
        return f"{about} do not confirm it: it may have cost {lost:.1f} points (95 % confidence)"

    def _assemble(self, fragments: Mapping[str, Fragments], kept: Sequence[LayerError], folder: Path) -> Manifest:
        left_out = {(error.graph, error.layer) for error in kept}
        chosen = {
            graph: {layer: fragment for layer, fragment in found.items() if (graph, layer) not in left_out}
            for graph, found in fragments.items()
        }
        return assemble(self.source, folder, self.graphs, self.recipes, chosen, self._method)

    def _ask_quantised(
        self, before: BundleAnswers, folder: Path, questions: Sequence[VqaExample], what: str
    ) -> BundleAnswers:
        """Where it can't answer, because what it computes is no number, it has no question right."""
        self._failure = ""
        try:
            return self._ask(folder, questions, what)
        except UsageError:
            raise
        except CatpError as error:
            self._failure = f" (quantised, it could not answer: {error})"
            return no_answers(before)

    def _ask(self, folder: Path, questions: Sequence[VqaExample], what: str) -> BundleAnswers:
        """The answers, of the original bundle once for the same questions."""
        key = id(questions) if folder == self.source.path else None
        if key in self._answers:
            return self._answers[key]
        advance = self._counter(f"ask the {what}", len(questions))
        asked = self.questions
        answers = ask(folder, questions, asked.metric, self._seed, self._batch_size, advance, asked.texts)
        if key is not None:
            self._answers[key] = answers
        return answers

    def _counter(self, what: str, total: int) -> Callable[[int], None]:
        done = 0

        def advance(more: int) -> None:
            nonlocal done
            done += more
            self._progress(what, done, total)

        self._progress(what, 0, total)
        return advance
