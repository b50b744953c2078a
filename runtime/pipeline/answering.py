"""Answers to questions about pictures: whole, in pieces, or chosen from given ones."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Unpack

import numpy as np

from catp.runtime.answers import Answer, Timings
from catp.runtime.bundle.folder import Bundle
from catp.runtime.bundle.generation_settings import GREEDY, GenerationSettings, Overrides
from catp.runtime.bundle.manifest import Positions
from catp.runtime.errors import UsageError
from catp.runtime.generation.loop import generate, generate_in_steps
from catp.runtime.generation.ranking import ROWS, K, RankedAnswer, rank
from catp.runtime.generation.request import Request, limit_lengths
from catp.runtime.generation.result import Generation
from catp.runtime.generation.stopping import Ending, StopStrings
from catp.runtime.image_sides.pruned_encoder import DEFAULT, EncoderWish
from catp.runtime.image_sides.query_tokens import Encoded, Pruned
from catp.runtime.inputs.image_files import ImageSource
from catp.runtime.inputs.text_stream import TextStream
from catp.runtime.inputs.videos import VideoSource
from catp.runtime.language_models import open_language_model, open_seats
from catp.runtime.language_models.base import Batch
from catp.runtime.language_models.question_answering import QuestionAnswering
from catp.runtime.language_models.seats import Seats
from catp.runtime.pipeline.stages import Stages
from catp.runtime.providers.base import Provider, Value
from catp.runtime.questions import Question, Wishes, find_repeated, frames_by_row, position_mode


class Answering(Stages):
    """Answers by a bundle whose language model writes."""

    def __init__(self, bundle: Bundle, provider: Provider) -> None:
        super().__init__(bundle, provider)
        self.language_model = open_language_model(bundle, provider)

    def generate(
        self,
        images: Sequence[VideoSource],
        prompts: Sequence[str],
        ratio: float | None = None,
        positions: Positions | None = None,
        max_new_tokens: int | None = None,
        keep_mass: float | None = None,
        settings: GenerationSettings | None = None,
        encoder: EncoderWish = DEFAULT,
        **overrides: Unpack[Overrides],
    ) -> list[Answer]:
        """Answer one prompt per image, all as one batch.

        An image that is given several times (the same path, the same object) is encoded and voted on once.

        Args:
            images: files, their bytes, PIL images, or uint8 arrays [H, W, 3] or [H, W], see `load_image`; of a model of
                videos, sequences of these, folders or animations, equally many frames each.
            prompts: as many; an empty one asks for a caption.
            ratio: fraction of query tokens removed, 0 <= ratio < 1; None: the bundle's default.
            positions: "original" or "compact"; None: the bundle's default.
            max_new_tokens: per prompt; None: the bundle's default.
            keep_mass: instead of a ratio, keep for each image, or each frame of a video, the fewest tokens that have
                this share of its votes.
            settings: how tokens are chosen; None: the bundle's default, as in Hugging Face's `generate()`.
            encoder: what a vision encoder that prunes keeps; by default what the bundle says.
            overrides: single settings by name, such as num_beams=4; see GenerationSettings.

        Raises:
            UsageError: an argument is out of range, or a prompt is too long for the model.
            ImageError: an image can't be read.
        """
        if len(images) != len(prompts) or not images:
            raise UsageError(
                f"{len(images)} images and {len(prompts)} prompts: give one prompt per image, at least one"
            )
        chosen = (settings or self.manifest.generation).asked_for(**overrides)
        wishes = Wishes(chosen, ratio, keep_mass, positions, max_new_tokens, encoder)
        return self.answer([Question(image, prompt, wishes) for image, prompt in zip(images, prompts)])

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """Answer questions whose settings may differ: those that share them are one batch.

        Raises:
            UsageError, ImageError: as `generate`; nothing is answered then.
        """
        rows_of: dict[Wishes, list[int]] = {}
        for row, question in enumerate(questions):
            rows_of.setdefault(question.wishes, []).append(row)
        found: dict[int, Answer] = {}
        for wishes, rows in rows_of.items():
            asked = [questions[row] for row in rows]
            found.update(zip(rows, self._answer_batch(asked, wishes)))
        return [found[row] for row in range(len(questions))]

    def _answer_batch(self, questions: Sequence[Question], wishes: Wishes) -> list[Answer]:
        prompts, chosen = [question.prompt for question in questions], wishes.settings
        pruning = wishes.pruning(self.manifest, self.image_side)
        token_ids = [self._text.encode(prompt) for prompt in prompts]
        videos = frames_by_row(self.manifest, [question.source for question in questions])
        frames = len(videos[0])
        distinct, image_of = find_repeated(videos, prompts if self.manifest.reads_instruction else None)
        self._limits(token_ids, wishes.max_new_tokens, chosen, frames)  # refuses before any work
        wishes.check_frames(self.manifest, frames, pruning[0])
        clock = [time.perf_counter()]
        pixel_values = self.preprocess([frame for row in distinct for frame in videos[row]])
        clock.append(time.perf_counter())
        encoded = self.encode(pixel_values, [prompts[row] for row in distinct for _ in range(frames)], wishes.encoder)
        self.provider.synchronize()  # so that each stage's time is its own
        clock.append(time.perf_counter())
        groups = self._prune(encoded, len(distinct), frames, *pruning)
        kept_indices = {image: pruned.kept_of(row) for group, pruned in groups for row, image in enumerate(group)}
        clock.append(time.perf_counter())
        generations = []
        for group, pruned in groups:
            rows = [row for row, image in enumerate(image_of) if image in group]
            asked, about = [token_ids[row] for row in rows], [group.index(image_of[row]) for row in rows]
            generation = self.decode(pruned, asked, wishes.max_new_tokens, wishes.positions, chosen, about)
            generations.append((rows, generation))
        clock.append(time.perf_counter())
        generated = {row: ids for rows, generation in generations for row, ids in zip(rows, generation.token_ids)}
        decode = [seconds for _, generation in generations for seconds in generation.decode_seconds]
        preprocess_ms, vision_ms, qformer_ms, _ = np.diff(clock) * 1e3
        timings = Timings(
            preprocess=float(preprocess_ms),
            vision=float(vision_ms),
            qformer=float(qformer_ms),
            prefill=sum(generation.prefill_seconds for _, generation in generations) * 1e3,
            decode_per_token=float(np.mean(decode)) * 1e3 if decode else 0.0,
            total=(clock[-1] - clock[0]) * 1e3,
        )
        return [
            Answer(
                self._text.decode(generated[row], chosen.stop_strings),
                generated[row],
                kept_indices[image],
                len(kept_indices[image]),
                self.provider.name,
                timings,
            )
            for row, image in enumerate(image_of)
        ]

    def ask(
        self,
        image: VideoSource,
        prompts: Sequence[str],
        ratio: float | None = None,
        positions: Positions | None = None,
        max_new_tokens: int | None = None,
        keep_mass: float | None = None,
        settings: GenerationSettings | None = None,
        encoder: EncoderWish = DEFAULT,
        **overrides: Unpack[Overrides],
    ) -> list[Answer]:
        """Several prompts about one image, as one batch; everything else as in `generate`."""
        images = [image] * len(prompts)
        return self.generate(
            images, prompts, ratio, positions, max_new_tokens, keep_mass, settings, encoder, **overrides
        )

    def stream(
        self,
        image: VideoSource,
        prompt: str,
        ratio: float | None = None,
        positions: Positions | None = None,
        max_new_tokens: int | None = None,
        keep_mass: float | None = None,
        settings: GenerationSettings | None = None,
        encoder: EncoderWish = DEFAULT,
        **overrides: Unpack[Overrides],
    ) -> Iterator[str]:
        """The answer to one prompt in pieces, each as soon as nothing that follows can change it.

        Pieces are whole characters, and together the answer of `generate`, whose arguments and errors they have.

        Raises:
            UsageError: also for a beam search, whose answer is not known before its end.
        """
        chosen = (settings or self.manifest.generation).asked_for(**overrides)
        wishes = Wishes(chosen, ratio, keep_mass, positions, max_new_tokens, encoder)
        pruning = wishes.pruning(self.manifest, self.image_side)
        if chosen.num_beams > 1:
            raise UsageError(
                f"stream: the answer of {chosen.num_beams} beams is not known before its end; give num_beams 1, or "
                "don't stream"
            )
        token_ids = [self._text.encode(prompt)]
        (video,) = frames_by_row(self.manifest, [image])
        self._limits(token_ids, max_new_tokens, chosen, len(video))
        wishes.check_frames(self.manifest, len(video), pruning[0])

        def pieces() -> Iterator[str]:
            encoded = self.encode(self.preprocess(video), [prompt] * len(video), encoder)
            ((_, pruned),) = self._prune(encoded, 1, len(video), *pruning)
            text = TextStream(self._text, chosen.stop_strings)
            request = self.request(pruned, token_ids, max_new_tokens, positions, chosen)
            for generation in generate_in_steps(self.language_model, request):
                if piece := text.advance(generation.token_ids[0]):
                    yield piece
            if piece := text.finish(generation.token_ids[0]):
                yield piece

        return pieces()

    def _prune(
        self, encoded: Encoded, images: int, frames: int, kept: int, keep_mass: float | None
    ) -> list[tuple[list[int], Pruned]]:
        """Images, or videos of so many frames, that keep equally many tokens, together."""
        if keep_mass is None:
            pruned = self.prune(encoded, kept)
            if (vote := self.manifest.vote) is not None:
                pruned.check(images * frames, kept, vote.num_query_tokens)
                pruned = pruned.joined(frames, vote.num_query_tokens)
            return [(list(range(images)), pruned)]
        return self.image_side.by_mass(encoded, keep_mass, frames)

    def rank(
        self,
        images: Sequence[ImageSource],
        prompts: Sequence[str],
        answers: Sequence[str],
        k: int = K,
        rows: int = ROWS,
        encoder: EncoderWish = DEFAULT,
    ) -> list[list[RankedAnswer]]:
        """For each question the likeliest of given answers, best first, by a bundle for question answering.

        Args:
            images: as in `generate`.
            prompts: as many.
            answers: the same ones for every question.
            k: how many are scored: those whose first token is likeliest.
            rows: answers that the decoder reads at a time, at most; an engine may take fewer.
            encoder: as in `generate`.

        Raises:
            UsageError: the bundle's answers can't be ranked, an argument is out of range, or a text is too long.
            ImageError: an image can't be read.
        """
        if len(images) != len(prompts) or not images:
            raise UsageError(
                f"{len(images)} images and {len(prompts)} prompts: give one prompt per image, at least one"
            )
        self.check_ranks()
        self._candidates(answers)  # refuses before any work
        token_ids = [self._text.encode(prompt) for prompt in prompts]
        distinct, image_of = find_repeated(frames_by_row(self.manifest, images), None)
        encoded = self.encode(self.preprocess([images[row] for row in distinct]), encoder=encoder)
        return self.rank_pruned(self.prune(encoded, self.num_kept()), token_ids, answers, image_of, k, rows)

    def check_ranks(self) -> None:
        """Raises UsageError where the bundle's answers can't be ranked."""
        if not isinstance(self.language_model, QuestionAnswering):
            raise UsageError(
                f"bundle {self.bundle.path} is {self.manifest.model.family}, whose answers can't be ranked; "
                "accepted: BLIP for question answering"
            )

    def rank_pruned(
        self,
        pruned: Pruned,
        prompts: Sequence[Sequence[int]],
        answers: Sequence[str],
        images: Sequence[int] | None = None,
        k: int = K,
        rows: int = ROWS,
    ) -> list[list[RankedAnswer]]:
        """The likeliest of given answers for each prompt, as token ids; other arguments and errors as of `rank`.

        Args:
            images: per prompt, the row of `pruned` that it is about; None: row by row.
        """
        self.check_ranks()
        model, candidates = self.language_model, self._candidates(answers)
        assert isinstance(model, QuestionAnswering)
        ranked = []
        of_images = range(len(prompts)) if images is None else images
        for ids, image in zip(prompts, of_images, strict=True):  # each by itself: no question is padded
            batch = Batch(pruned.kept_embeds, pruned.kept_indices, 0, [list(ids)], [image], pruned.temperature)
            found = rank(model, batch, candidates, k, rows)
            ranked.append([RankedAnswer(answers[index], score) for index, score in found])
        return ranked

    def _candidates(self, answers: Sequence[str]) -> list[list[int]]:
        """Token ids of answers, with what ends them."""
        text = self.manifest.text
        if not answers:
            raise UsageError("answers: there are none to rank; give at least one")
        if not text.eos_token_ids:
            raise UsageError(f"bundle {self.bundle.path}: no token ends an answer, so answers can't be ranked")
        candidates = [[*self._text.encode_answer(answer), text.eos_token_ids[0]] for answer in answers]
        longest = max(candidates, key=len)
        if text.max_positions is not None and len(longest) > text.max_positions:
            answer = answers[candidates.index(longest)]
            raise UsageError(
                f"answer {answer[:40]!r}: {len(longest)} tokens, and this model has {text.max_positions} positions; "
                "leave it out"
            )
        return candidates

    def decode(
        self,
        pruned: Pruned,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int | None = None,
        positions: Positions | None = None,
        settings: GenerationSettings = GREEDY,
        images: Sequence[int] | None = None,
    ) -> Generation:
        """Generate after the kept tokens.

        Args:
            prompts: token ids of each.
            settings: how tokens are chosen; greedily, whatever the bundle's default is, where none are given.
            images: per prompt, the row of `pruned` that it is about; None: row by row.
        """
        request = self.request(pruned, prompts, max_new_tokens, positions, settings, images)
        return generate(self.language_model, request)

    def request(
        self,
        pruned: Pruned,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int | None,
        positions: Positions | None,
        settings: GenerationSettings,
        images: Sequence[int] | None = None,
    ) -> Request:
        """Everything that decides the tokens after the kept ones; arguments as of `decode`.

        Raises:
            UsageError: an argument is out of range.
        """
        vote = self.manifest.vote
        rows, kept = pruned.kept_indices.shape
        if position_mode(self.manifest, positions) == "original" and vote is not None:
            # As in training: kept tokens stay where they were, and the text begins after all N of every frame.
            where: Value = pruned.kept_indices
            start = vote.num_query_tokens * pruned.frames
        else:
            where, start = np.tile(np.arange(kept), (rows, 1)), kept
        if images is not None and list(images) == list(range(rows)):
            images = None
        stop = tuple(string.encode() for string in settings.stop_strings)
        return Request(
            Batch(pruned.kept_embeds, where, start, prompts, images, pruned.temperature),
            self._contexts(prompts, pruned.frames),
            self._limits(prompts, max_new_tokens, settings, pruned.frames),
            Ending(frozenset(self.manifest.text.eos_token_ids), StopStrings(stop, self._text.piece) if stop else None),
            settings,
        )

    def _contexts(self, prompts: Sequence[Sequence[int]], frames: int) -> list[list[int]]:
        """The ids before each answer, as Hugging Face counts ids: all query tokens, also where some are pruned."""
        placeholder = self.manifest.text.image_token_id
        image = [] if placeholder is None else [placeholder] * self.manifest.pruning.num_query_tokens * frames
        return [self.language_model.context(prompt, image) for prompt in prompts]

    def _limits(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int | None, settings: GenerationSettings, frames: int
    ) -> list[int]:
        contexts = self._contexts(prompts, frames)
        return limit_lengths(contexts, max_new_tokens, self.manifest.text.max_new_tokens, settings)

    # For callers that drive the language model themselves, such as a server.

    def check(self, question: Question, frames: int = 1) -> tuple[list[int], int]:
        """Token ids of a question's prompt, and the most tokens that its answer may have, before any work is done.

        Args:
            frames: of its video.

        Raises:
            UsageError: one of its settings is out of range, or its prompt can't be read.
        """
        wishes = question.wishes
        kept, _ = wishes.pruning(self.manifest, self.image_side)
        position_mode(self.manifest, wishes.positions)
        token_ids = self._text.encode(question.prompt)
        self.instruct([question.prompt])
        (limit,) = self._limits([token_ids], wishes.max_new_tokens, wishes.settings, frames)
        wishes.check_frames(self.manifest, frames, kept)
        return token_ids, limit

    def open_seats(self, rows: int, length: int) -> Seats:
        """Room for so many answers at a time, of so many tokens with image and prompt."""
        return open_seats(self.bundle, self.language_model, rows, length)

    def text_stream(self, stop_strings: Sequence[str] = ()) -> TextStream:
        """The text of one answer while it grows."""
        return TextStream(self._text, stop_strings)
