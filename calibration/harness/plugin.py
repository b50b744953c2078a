"""The model that lmms-eval runs: a bundle, with the harness's requests as questions."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from loguru import logger
from tqdm import tqdm

from catp.calibration.harness.arguments import read_arguments
from catp.calibration.harness.pictures import merge_equal, read_pictures
from catp.calibration.harness.prompts import read_prompt, template_of
from catp.calibration.harness.settings import Generating, read_generation
from catp.calibration.supported import check_answers
from catp.runtime import Pipeline
from catp.runtime.bundle.generation_settings import GREEDY
from catp.runtime.errors import CatpError, ImageError, UsageError
from catp.runtime.inputs.videos import VideoSource
from catp.runtime.questions import Wishes, position_mode


@dataclass(frozen=True)
class Place:
    """The document that a request is about."""

    task: str
    split: str
    document: int


@dataclass(frozen=True)
class Asked:
    """A request, read."""

    place: Place
    visuals: Any  # called with a document
    prompt: str
    generating: Generating
    draw: int  # which of the draws for this document, where a task asks for several


class BundleModel(lmms):
    """A bundle behind the harness's interface for models that read pictures and one text.

    Args:
        batch_size: rows of the language model; every beam is one. Drawn answers go one by one.
        max_batch_size: of an automatic batch size, which there is not.
        device: refused: the provider decides.
        arguments: `--model_args`, see `Arguments`.

    Raises:
        UsageError: an argument can't be used, or the bundle writes no text.
        BundleError: the bundle is incomplete or was altered.
    """

    is_simple = True

    def __init__(
        self,
        batch_size: int | str | None = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__()
        self.arguments = read_arguments(arguments)
        self.batch_size = _rows(batch_size)
        if device is not None:
            raise UsageError(
                f"--device {device}: the provider decides; leave it out, and give provider=NAME in --model_args"
            )
        self._pipeline: Pipeline | None = None
        manifest, own = self.pipeline.manifest, self.arguments
        check_answers(self.pipeline.bundle, "lmms-eval")
        read_generation({}, {name: value for name, value in own.generation.items() if name not in _ONLY_WITH_OTHERS})
        wishes = Wishes(GREEDY, own.ratio, own.keep_mass, own.positions, None, own.encoder)
        kept, mass = wishes.pruning(manifest, self.pipeline.image_side)
        own.encoder.inputs(manifest.encoder_pruning, manifest.model.family)
        logger.info(
            f"{own.bundle}: {manifest.model.family}, "
            + (f"{kept} of {manifest.tokens} tokens" if mass is None else f"{mass:g} of the votes")
            + f" kept, {position_mode(manifest, own.positions)} positions, prompts {template_of(own, manifest)!r}"
        )

    @property
    def pipeline(self) -> Pipeline:
        """The bundle's engines; loaded again after `clean`."""
        if self._pipeline is None:
            own = self.arguments
            self._pipeline = Pipeline.load(own.bundle, own.provider, threads=own.threads, engines=own.engines)
        return self._pipeline

    @property
    def device(self) -> str:
        """Where the harness puts the counts that its processes exchange."""
        return "cpu"

    def clean(self) -> None:
        """Give the bundle's memory back, as the harness does before a judge is loaded."""
        self._pipeline = None
        super().clean()

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """The answers, in the order of the requests.

        Raises:
            UsageError: settings of a task are unknown, or a picture is missing or one too many.
            ImageError: a picture can't be read.
        """
        asked = self._read(requests)
        rows_of: dict[tuple[Any, ...], list[int]] = {}
        for row, one in enumerate(asked):
            of_task = one.generating
            rows_of.setdefault((of_task.settings, of_task.max_new_tokens), []).append(row)
        answers: dict[int, GenerationResult] = {}
        with tqdm(total=len(asked), disable=self.rank != 0, desc="Model Responding") as bar:
            for rows in rows_of.values():
                size = self._together(asked[rows[0]].generating)
                for start in range(0, len(rows), size):
                    part = rows[start : start + size]
                    answers.update(zip(part, self._answer([asked[row] for row in part])))
                    bar.update(len(part))
        return [answers[row] for row in range(len(asked))]

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Raises UsageError: the harness, as of 0.7.3, makes texts of likelihoods, and its metrics fail on them."""
        raise UsageError(
            f"task {requests[0].task_name}: it compares likelihoods of given answers, and a bundle writes answers of "
            "its own here; leave it out (BLIP for question answering ranks given answers in Python, by Pipeline.rank)"
        )

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Raises UsageError: one answer ends a conversation here."""
        raise UsageError(f"task {requests[0].task_name}: it has several rounds, and a bundle answers one; leave it out")

    def _read(self, requests: Sequence[Instance]) -> list[Asked]:
        """All requests before the first is answered, so that what can't be asked is known at once."""
        draws: Counter[tuple[Place, int]] = Counter()
        asked = []
        for request in requests:
            context, of_task, visuals, document, task, split = request.args
            place = Place(task, split, document)
            with _about(place):
                generating = read_generation(of_task, self.arguments.generation)
                prompt = read_prompt(context, self.arguments, self.pipeline.manifest)
            asked.append(Asked(place, visuals, prompt, generating, draws[place, request.idx]))
            draws[place, request.idx] += 1
        return asked

    def _together(self, generating: Generating) -> int:
        manifest = self.pipeline.manifest
        counts = manifest.encoder_pruning is not None and manifest.encoder_pruning.form == "dynamic"
        # Of the dynamic form, pictures of a batch decide how many tokens each other keeps. Videos differ in length.
        if generating.settings.do_sample or counts or manifest.model.frames is not None:
            return 1
        return max(1, self.batch_size // generating.settings.num_beams)

    def _answer(self, asked: Sequence[Asked]) -> list[GenerationResult]:
        pipeline, own, generating = self.pipeline, self.arguments, asked[0].generating
        images: list[VideoSource] = []
        for one in asked:
            with _about(one.place):
                images.append(read_pictures(one.visuals(self._document(one.place)), pipeline.manifest))
        settings = generating.settings
        if settings.do_sample:
            settings = settings.override(seed=_seed(asked[0]))
        prompts = [one.prompt for one in asked]
        with _about(asked[0].place):
            answers = pipeline.generate(
                merge_equal(images),
                prompts,
                own.ratio,
                own.positions,
                generating.max_new_tokens,
                own.keep_mass,
                settings,
                own.encoder,
            )
        return [
            GenerationResult(
                answer.answer,
                TokenCounts(answer.num_kept + len(pipeline.tokenize(prompt)), len(answer.token_ids)),
            )
            for prompt, answer in zip(prompts, answers)
        ]

    def _document(self, place: Place) -> Any:
        return self.task_dict[place.task][place.split][place.document]


_ONLY_WITH_OTHERS = ("length_penalty", "early_stopping")
"""Arguments that a task's number of beams gives a use."""


def _rows(batch_size: int | str | None) -> int:
    try:
        rows = int(batch_size or 1)
    except ValueError:
        rows = 0
    if rows < 1:
        raise UsageError(f"--batch_size {batch_size}: give a number, at least 1")
    return rows


def _seed(asked: Asked) -> int:
    """The seed of one drawn answer: neither batches nor other documents change what is drawn."""
    place = asked.place
    text = f"{asked.generating.seed} {place.task} {place.split} {place.document} {asked.draw}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


@contextmanager
def _about(place: Place) -> Iterator[None]:
    """Errors with the document that they are about, in the same line."""
    try:
        yield
    except CatpError as error:
        message = f"task {place.task}, document {place.document} of {place.split}: {error}"
        kind = type(error) if isinstance(error, UsageError | ImageError) else CatpError
        raise kind(message) from error
