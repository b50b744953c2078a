"""Two bundles on the same questions: what is answered, and which tokens are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from catp.calibration.accuracy.answering import Answerer, in_batches
from catp.calibration.accuracy.judging import PairAnswerer
from catp.calibration.accuracy.settings import Setting
from catp.calibration.accuracy.statistics import mean_difference, unseen_losses
from catp.calibration.data.dataset import VqaExample
from catp.calibration.data.fitting import finds_texts, judges_pairs
from catp.calibration.data.metrics import Metric
from catp.calibration.precision.memory import is_tight
from catp.calibration.retrieval.best import find_best
from catp.export.verification.emulated import emulated
from catp.runtime.bundle.folder import Bundle, open_bundle
from catp.runtime.bundle.manifest import AccuracyChange, PruningSpec
from catp.runtime.errors import CatpError
from catp.runtime.image_sides.pruned_encoder import DEFAULT, EncoderWish
from catp.runtime.image_sides.query_tokens import Encoded, Votes
from catp.runtime.matching import Pictures
from catp.runtime.pipeline import Pipeline
from catp.runtime.providers.base import Provider, to_host
from catp.runtime.providers.onnx_runtime import OrtProvider
from catp.runtime.pruning import num_kept, top_indices
from catp.runtime.questions import position_mode
from catp.runtime.retrieval.gallery import Gallery

Advance = Callable[[int], None]
"""Called with the number of questions just done."""


class WatchedPipeline(Pipeline):
    """A pipeline that remembers what was kept of every image, or frame of a video, that it was asked about.

    Scores of query tokens [B, N], which are no numbers where tokens are none; of a model that compares pictures with
    texts, the tokens kept, int64 [B, k]; and of an encoder that prunes, the patches that leave it, int64 [B, K] with -1
    for merged ones.
    """

    def __init__(self, bundle: Bundle, provider: Provider) -> None:
        super().__init__(bundle, provider)
        self.scores: list[np.ndarray] = []
        self.patches: list[np.ndarray] = []
        self.kept: list[np.ndarray] = []

    def encode(self, pixel_values: np.ndarray, prompts: Sequence[str] = (), encoder: EncoderWish = DEFAULT) -> Encoded:
        encoded = super().encode(pixel_values, prompts, encoder)
        if "kept_positions" in encoded:
            self.patches.append(np.array(to_host(encoded["kept_positions"])))
        return encoded

    def see_pixels(
        self, pixel_values: np.ndarray, ratio: float | None = None, encoder: EncoderWish = DEFAULT
    ) -> Pictures:
        found = super().see_pixels(pixel_values, ratio, encoder)
        self.kept.append(np.array(to_host(found.kept_indices)))
        return found

    def votes(self, encoded: Encoded) -> Votes:
        found = super().votes(encoded)
        # Comparisons make finite votes of what is no number.
        computed = np.isfinite(found.embeds).all(axis=(1, 2))
        self.scores.append(np.where(computed[:, None], found.scores, np.nan))
        return found


@dataclass(frozen=True)
class BundleAnswers:
    """A bundle's answers to questions."""

    ratios: tuple[float, ...]
    images: tuple[str, ...]  # of each question
    accuracy: np.ndarray  # [questions, ratios]
    kept: np.ndarray  # int64 [pictures or frames, k], at the last ratio that prunes; -1 where scores were no numbers
    patches: tuple[np.ndarray, ...] | None = None  # by picture, those that leave an encoder that prunes
    best: np.ndarray | None = None  # int64 [questions, ratios], where none is right: the texts that fit best


def tested_ratios(pruning: PruningSpec | None) -> tuple[float, ...]:
    """All tokens, and those that the bundle keeps by default (half of them, where it keeps all)."""
    return (0.0,) if pruning is None or pruning.method == "none" else (0.0, pruning.ratio or 0.5)


def ask(
    folder: Path,
    questions: Iterable[VqaExample],
    metric: Metric,
    seed: int,
    batch_size: int,
    advance: Advance,
    texts: Sequence[str] = (),
) -> BundleAnswers:
    """Ask a bundle every question at every tested ratio, on the CPU, which emulates what a GPU would compute in fp16.

    Where pictures of a batch decide how many patches each other keeps, each is asked about by itself.

    Args:
        texts: of pictures without captions, those that the best is looked for among.

    Raises:
        CatpError: no question could be asked, or in fp16 an operator's result is beyond its range.
    """
    bundle = open_bundle(folder)
    half = bundle.manifest.precision == "fp16"
    pipeline = (
        WatchedPipeline(*emulated(bundle))
        if half
        else WatchedPipeline(bundle, OrtProvider("cpu", mapped=is_tight(bundle)))
    )
    vote, inside = pipeline.manifest.vote, pipeline.manifest.encoder_pruning
    if inside is not None and inside.form == "dynamic":
        batch_size = 1
    ratios = tested_ratios(vote)
    if finds_texts(pipeline.manifest):
        return _search(pipeline, list(questions), ratios, texts, batch_size, advance)
    positions = position_mode(pipeline.manifest, None)
    settings = [Setting(vote.method if vote else "none", positions, ratio=ratio) for ratio in ratios]
    answerer: Answerer | PairAnswerer = (
        PairAnswerer(pipeline, metric)
        if judges_pairs(pipeline.manifest)
        else Answerer(pipeline, settings, metric, seed, batch_size)
    )
    images: list[str] = []
    accuracy: list[Sequence[float]] = []
    for batch in in_batches(questions, batch_size):
        for prediction in answerer.answer(batch):
            if prediction.error is None:
                images.append(prediction.image_key)
                accuracy.append(prediction.accuracy)
        advance(len(batch))
    if not accuracy:
        raise CatpError("none of the questions could be asked; catp-eval on the same data says why")
    kept = np.zeros((len(images), 1), np.int64)  # all there are, where nothing votes
    if pipeline.scores:
        scores = np.concatenate(pipeline.scores)
        kept = top_indices(scores, num_kept(ratios[-1], pipeline.manifest.tokens))
        kept[~np.isfinite(scores).all(axis=1)] = -1
    return BundleAnswers(ratios, tuple(images), np.array(accuracy), kept, _by_picture(pipeline.patches))


def _search(
    pipeline: WatchedPipeline,
    questions: Sequence[VqaExample],
    ratios: tuple[float, ...],
    texts: Sequence[str],
    batch_size: int,
    advance: Advance,
) -> BundleAnswers:
    """As `ask`, of a bundle that compares pictures with texts."""
    found = []
    watched: list[BundleAnswers] = []

    def embedded(gallery: Gallery) -> None:
        """Before any picture is looked at again."""
        votes = pipeline.manifest.vote is not None
        kept = np.concatenate(pipeline.kept) if votes else np.zeros((len(gallery.sources), 1), np.int64)
        watched.append(BundleAnswers(ratios, (), np.zeros(0), kept, _by_picture(pipeline.patches)))

    for ratio in ratios:
        pipeline.kept, pipeline.patches = [], []
        counted = advance if ratio == ratios[-1] else lambda _: None
        found.append(find_best(pipeline, questions, texts, ratio, batch_size, embedded, counted))
    return replace(
        watched[-1],
        images=tuple(question.image_key for question in found[-1].questions),
        accuracy=np.stack([best.right for best in found], 1),
        best=np.stack([best.texts for best in found], 1) if texts else None,
    )


def _by_picture(batches: Iterable[np.ndarray]) -> tuple[np.ndarray, ...] | None:
    """Patches of each picture, merged ones left out; None where there are no batches."""
    return tuple(row[row >= 0] for batch in batches for row in batch) or None


def no_answers(before: BundleAnswers) -> BundleAnswers:
    """The answers of a bundle that can't answer the questions that another one did."""
    patches = None if before.patches is None else tuple(row[:0] for row in before.patches)
    kept = np.full_like(before.kept, -1)
    best = None if before.best is None else np.full_like(before.best, -1)
    return replace(before, accuracy=np.zeros_like(before.accuracy), kept=kept, patches=patches, best=best)


def kept_overlap(before: BundleAnswers, after: BundleAnswers) -> float:
    """Mean share of the tokens kept by one that the other keeps too, picture by picture, of videos frame by frame."""
    both = [len(np.intersect1d(a, b[b >= 0])) for a, b in zip(before.kept, after.kept, strict=True)]
    return float(np.mean(both)) / before.kept.shape[1]


def patch_overlap(before: BundleAnswers, after: BundleAnswers) -> float | None:
    """Mean share of the patches that leave one encoder and the other too; None where encoders prune nothing."""
    if before.patches is None or after.patches is None:
        return None
    pairs = zip(before.patches, after.patches, strict=True)
    return float(np.mean([len(np.intersect1d(a, b)) / len(a) for a, b in pairs if len(a)]))


def accuracy_changes(before: BundleAnswers, after: BundleAnswers, seed: int) -> tuple[AccuracyChange, ...]:
    """At each ratio, with the paired interval of the difference: a bootstrap's, and Wilson's where that is wider.

    Where no text is right, those that fitted best before are.
    """
    changes = []
    right = after.accuracy if before.best is None else np.asarray(after.best == before.best, np.float64)
    for ratio, old, new in zip(before.ratios, before.accuracy.T, right.T):
        found = mean_difference(new, old, seed, clusters=before.images)
        # Of few changes, or none, a bootstrap is far too sure.
        low = min(found.low, found.mean - unseen_losses(new - old, before.images))
        high = max(found.high, found.mean + unseen_losses(old - new, before.images))
        changes.append(
            AccuracyChange(
                ratio=ratio,
                before=float(old.mean()),
                after=float(new.mean()),
                difference=found.mean,
                interval_95=(low, high),
            )
        )
    return tuple(changes)
