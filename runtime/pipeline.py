"""The orchestrator: image and prompt through vision encoder, Q-Former with voting, and language model."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Unpack

import numpy as np

from catp.runtime.answers import Answer, Timings
from catp.runtime.bundle.folder import Bundle, open_bundle
from catp.runtime.bundle.generation_settings import GREEDY, GenerationSettings, Overrides
from catp.runtime.bundle.manifest import Manifest, Positions
from catp.runtime.errors import UsageError
from catp.runtime.generation.loop import generate, generate_in_steps
from catp.runtime.generation.ranking import ROWS, K, RankedAnswer, rank
from catp.runtime.generation.request import Request, limit_lengths
from catp.runtime.generation.result import Generation
from catp.runtime.generation.stopping import Ending, StopStrings
from catp.runtime.image_sides import open_image_side
from catp.runtime.image_sides.pruned_encoder import DEFAULT, EncoderWish
from catp.runtime.image_sides.query_tokens import Encoded, Pruned, Remembered, Seen, Votes, kept_of_rows
from catp.runtime.inputs.image_files import ImageSource
from catp.runtime.inputs.text import TextCodec
from catp.runtime.inputs.text_stream import TextStream
from catp.runtime.inputs.videos import VideoSource
from catp.runtime.language_models import open_language_model, open_seats
from catp.runtime.language_models.base import Batch
from catp.runtime.language_models.question_answering import QuestionAnswering
from catp.runtime.language_models.seats import Seats
from catp.runtime.matching import Match, Matching, Pictures, open_matching
from catp.runtime.matching.two_images import Judging, Verdict, verdicts
from catp.runtime.matching.zero_shot import TEMPLATE, Classes, check_classes, class_vectors, probabilities
from catp.runtime.providers import open_provider
from catp.runtime.providers.base import Provider, Value, to_host
from catp.runtime.pruning import joined_frames, top_by_mass, top_indices
from catp.runtime.questions import Question, Wishes, find_repeated, frames_by_row, position_mode


class Pipeline:
    """A bundle's engines, loaded and chained; its stages are there for callers that share work between settings."""

    def __init__(self, bundle: Bundle, provider: Provider) -> None:
        manifest = bundle.manifest
        self.bundle = bundle
        self.provider = provider
        self.image_side = open_image_side(bundle, provider)
        self._text = TextCodec(bundle.path / "tokenizer.json", manifest.text, manifest.text.image_token_id)
        self.language_model = open_language_model(bundle, provider)
        self._matching = open_matching(bundle, provider)
        self._judging = Judging(bundle, provider) if manifest.model.language == "two-images" else None

    @classmethod
    def load(
        cls,
        bundle: str | os.PathLike[str],
        provider: str = "cpu",
        verify: bool = True,
        threads: int | None = None,
        engines: str | None = None,
        verbose: bool = False,
        rehash: bool = False,
    ) -> Pipeline:
        """Open a bundle and load its graphs.

        Args:
            bundle: a folder written by catp-export.
            provider: what executes the graphs, one of `catp.runtime.providers.PROVIDERS`.
            verify: compare every file with the manifest's sha256 first; see `open_bundle`.
            threads: CPU threads within an operator; None leaves it to the provider.
            engines: name of an engine set (`catp-inspect` lists them); None: the newest that fits.
            verbose: let ONNX Runtime write its log to standard error.
            rehash: read every file for that, also those that nobody touched since they were hashed last.

        Raises:
            UsageError: no such bundle or provider.
            BundleError: the bundle is incomplete or was altered.
        """
        return cls(open_bundle(bundle, verify, rehash), open_provider(provider, threads, engines, verbose))

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
        model = self.language_model
        if not isinstance(model, QuestionAnswering):
            raise UsageError(
                f"bundle {self.bundle.path} is {self.manifest.model.family}, whose answers can't be ranked; "
                "accepted: BLIP for question answering"
            )
        candidates = self._candidates(answers)
        token_ids = [self._text.encode(prompt) for prompt in prompts]
        distinct, image_of = find_repeated(frames_by_row(self.manifest, images), None)
        encoded = self.encode(self.preprocess([images[row] for row in distinct]), encoder=encoder)
        pruned = self.prune(encoded, self.num_kept())
        ranked = []
        for ids, image in zip(token_ids, image_of):  # each by itself: no question is padded
            batch = Batch(pruned.kept_embeds, pruned.kept_indices, 0, [ids], [image], pruned.temperature)
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

    def match(
        self,
        images: Sequence[ImageSource],
        texts: Sequence[str],
        ratio: float | None = None,
        encoder: EncoderWish = DEFAULT,
    ) -> list[Match]:
        """How well each text fits its image, by a bundle of a retrieval model.

        Args:
            images: as in `generate`.
            texts: as many.
            ratio: fraction of query tokens removed, before the text is read and of those that are compared with it.
            encoder: what an encoder that prunes keeps.

        Raises:
            UsageError: the bundle generates text instead, an argument is out of range, or a text is too long.
            ImageError: an image can't be read.
        """
        if len(images) != len(texts) or not images:
            raise UsageError(f"{len(images)} images and {len(texts)} texts: give one text per image, at least one")
        _, _ = self.matching, self.num_kept(ratio)  # refuses before any work
        ids = [self._text.encode(text) for text in texts]
        return self.match_pixels(self.preprocess(images), ids, ratio, encoder)

    def match_pixels(
        self,
        pixel_values: np.ndarray,
        texts: Sequence[Sequence[int]],
        ratio: float | None = None,
        encoder: EncoderWish = DEFAULT,
    ) -> list[Match]:
        """As `match`, from pixel_values float32 [B, 3, H, W] and token ids of B texts, or of any number about one."""
        matching, pictures = self.matching, self.see_pixels(pixel_values, ratio, encoder)
        scores = matching.score(pictures if len(texts) == len(pixel_values) else pictures.for_texts(len(texts)), texts)
        indices = kept_of_rows(to_host(pictures.kept_indices))
        if len(indices) != len(texts):
            indices = indices * len(texts)
        probability = scores.probability
        likely = [None] * len(texts) if probability is None else probability.tolist()
        return [Match(*row) for row in zip(likely, scores.similarity.tolist(), indices)]

    def see_pixels(
        self, pixel_values: np.ndarray, ratio: float | None = None, encoder: EncoderWish = DEFAULT
    ) -> Pictures:
        """Pictures as a retrieval model compares them with texts, from pixel_values float32 [B, 3, H, W].

        Raises:
            UsageError: the bundle generates text instead, or the ratio is out of range.
            GraphError: a graph fails, or what it gives is not finite.
        """
        matching, kept = self.matching, self.num_kept(ratio)
        encoded = self.encode(pixel_values, encoder=encoder)
        pruned = self.prune(encoded, kept)
        if (vote := self.manifest.vote) is not None:
            pruned.check(len(pixel_values), kept, vote.num_query_tokens)
        return matching.see(encoded, pruned)

    def embed_pixels(self, pixel_values: np.ndarray, ratio: float | None = None) -> tuple[list[list[int]], np.ndarray]:
        """Vectors of pictures, as a retrieval model compares them with texts; arguments and errors of `see_pixels`.

        Returns:
            The kept indices of each picture, ascending; vectors float32 [B, v, Dt], each of length 1: one for each kept
            query token, or one for the picture.
        """
        pictures = self.see_pixels(pixel_values, ratio)
        return kept_of_rows(to_host(pictures.kept_indices)), to_host(pictures.vectors)

    def embed_images(
        self, images: Sequence[ImageSource], ratio: float | None = None, encoder: EncoderWish = DEFAULT
    ) -> np.ndarray:
        """Vectors of images, by a bundle of a retrieval model: float32 [B, v, Dt], as of `embed_pixels`.

        Raises:
            UsageError: the bundle generates text instead, there is no image, or an argument is out of range.
            ImageError: an image can't be read.
        """
        if not images:
            raise UsageError("0 images: give at least one")
        _, _ = self.matching, self.num_kept(ratio)  # refuses before any work
        return to_host(self.see_pixels(self.preprocess(images), ratio, encoder).vectors)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of texts, by a bundle of a retrieval model: float32 [B, Dt] of length 1.

        Raises:
            UsageError: the bundle generates text instead, there is no text, or one is too long.
        """
        if not texts:
            raise UsageError("0 texts: give at least one")
        matching = self.matching
        return matching.embed([self.tokenize(text) for text in texts])

    def classify(
        self,
        images: Sequence[ImageSource],
        classes: Sequence[str],
        templates: Sequence[str] = (TEMPLATE,),
        encoder: EncoderWish = DEFAULT,
    ) -> list[Classes]:
        """The likeliest of given classes for each image, without any training on them, by a bundle of a CLIP.

        Args:
            images: as in `generate`.
            classes: names, such as "cat".
            templates: sentences with {} where a name stands; the vectors of one class's sentences are averaged.
            encoder: what an encoder that prunes keeps.

        Raises:
            UsageError: the bundle's model is not contrastive, an argument can't be used, or a sentence is too long.
            ImageError: an image can't be read.
        """
        scale = self.manifest.logit_scale
        if scale is None:
            raise UsageError(
                f"bundle {self.bundle.path} is {self.manifest.model.family}, which has no scale for classes; "
                "accepted: CLIP"
            )
        check_classes(classes, templates)
        if not images:
            raise UsageError("0 images: give at least one")
        of_classes = class_vectors(self.matching, self.tokenize, classes, templates)
        pictures = self.see_pixels(self.preprocess(images), encoder=encoder)
        found = probabilities(to_host(pictures.vectors)[:, 0], of_classes, scale)
        indices = kept_of_rows(to_host(pictures.kept_indices))
        return [
            Classes(classes[int(row.argmax())], dict(zip(classes, row.tolist())), kept)
            for row, kept in zip(found, indices)
        ]

    def judge(
        self,
        pairs: Sequence[tuple[ImageSource, ImageSource]],
        statements: Sequence[str],
        encoder: EncoderWish = DEFAULT,
    ) -> list[Verdict]:
        """Whether each statement is true of its two images, by a bundle of a model for NLVR2.

        A pair that is given several times (the same paths, the same objects) is encoded once.

        Args:
            pairs: a first and a second image each, as in `generate`.
            statements: as many.
            encoder: what an encoder that prunes keeps. In the dynamic form all images of the call keep equally many
                tokens, as in MADTP's official code.

        Raises:
            UsageError: the bundle is of another model, an argument is out of range, or a statement is too long.
            ImageError: an image can't be read.
        """
        if len(pairs) != len(statements) or not pairs or any(len(pair) != 2 for pair in pairs):
            raise UsageError(
                f"{len(pairs)} pairs and {len(statements)} statements: give two images for each statement, at least one"
            )
        ids = [self._text.encode(statement) for statement in statements]
        self.judging.check(ids)  # refuses before any work
        distinct, pair_of = find_repeated(pairs, None)
        pixel_values = self.preprocess([pairs[row][place] for place in (0, 1) for row in distinct])
        return self.judge_pixels(pixel_values, ids, pair_of, encoder)

    def judge_pixels(
        self,
        pixel_values: np.ndarray,
        statements: Sequence[Sequence[int]],
        pair_of: Sequence[int],
        encoder: EncoderWish = DEFAULT,
    ) -> list[Verdict]:
        """As `judge`, from pixel_values float32 [2P, 3, H, W], all first images before all second ones.

        Args:
            statements: token ids of each.
            pair_of: which of the P pairs each statement is about.
        """
        _ = self.judging  # refuses before any work
        return self.judge_encoded(self.encode(pixel_values, encoder=encoder), statements, pair_of)

    def judge_encoded(
        self, encoded: Encoded, statements: Sequence[Sequence[int]], pair_of: Sequence[int]
    ) -> list[Verdict]:
        """As `judge_pixels`, from what `encode` made of those pixels."""
        judging, embeds = self.judging, encoded["image_embeds"]
        count = embeds.shape[0] // 2
        if list(pair_of) == list(range(count)) and not isinstance(embeds, np.ndarray):
            return verdicts(judging.score(embeds.rows(0, count), embeds.rows(count, count), statements))
        tokens, rows = to_host(embeds), np.array(pair_of)
        return verdicts(judging.score(tokens[rows], tokens[count + rows], statements))

    @property
    def judging(self) -> Judging:
        """Raises UsageError where the bundle is not of a model that reads two images."""
        if self._judging is None:
            raise UsageError(
                f"bundle {self.bundle.path} is {self.manifest.model.family}, which judges no statements about two "
                "images; accepted: BLIP for NLVR2"
            )
        return self._judging

    @property
    def matching(self) -> Matching:
        """Raises UsageError where the bundle is not of a retrieval model."""
        if self._matching is None:
            raise UsageError(
                f"bundle {self.bundle.path} is {self.manifest.model.family}, which scores no texts; "
                "accepted: BLIP-2 and BLIP for image-text retrieval, CLIP"
            )
        return self._matching

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

    def remember(self, encoded: Encoded) -> Seen:
        """Enough of one image, or of one video's frames, to answer about it at every ratio; see `keep`."""
        return self.image_side.remember(encoded)

    def keep(self, seen: Seen, wishes: Wishes) -> Pruned:
        """The tokens of a remembered picture that the language model reads: those of `generate`."""
        kept, mass = wishes.pruning(self.manifest, self.image_side)
        if self.manifest.vote is None:
            assert isinstance(seen, Remembered)
            return self.prune(seen.encoded, kept)
        queries = self.manifest.pruning.num_query_tokens
        if mass is not None:
            votes = self.votes_of(seen)
            frames = len(votes.embeds)
            (indices,) = joined_frames(top_by_mass(votes.scores, mass), frames, queries)
            pruned = votes.joined(frames).keep(indices[None])
            pruned.check(1, len(indices), frames * queries)
            return pruned
        if isinstance(seen, Remembered):
            pruned = self.prune(seen.encoded, kept)
        else:
            pruned = seen.keep(top_indices(seen.scores, kept))
        frames = len(pruned.indices)
        pruned.check(frames, kept, queries)
        return pruned.joined(frames, queries)

    def votes_of(self, seen: Seen) -> Votes:
        """The votes of a remembered picture."""
        return self.votes(seen.encoded) if isinstance(seen, Remembered) else seen

    def open_seats(self, rows: int, length: int) -> Seats:
        """Room for so many answers at a time, of so many tokens with image and prompt."""
        return open_seats(self.bundle, self.language_model, rows, length)

    def text_stream(self, stop_strings: Sequence[str] = ()) -> TextStream:
        """The text of one answer while it grows."""
        return TextStream(self._text, stop_strings)

    # The stages before the language model, for callers that share their work between settings.

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    def num_kept(self, ratio: float | None = None) -> int:
        """Query tokens left at a ratio (None: the bundle's default)."""
        return self.image_side.num_kept(ratio)

    def preprocess(self, images: Sequence[ImageSource]) -> np.ndarray:
        """pixel_values float32 [B, 3, H, W]."""
        return self.image_side.preprocess(images)

    def instruct(self, prompts: Sequence[str]) -> Mapping[str, np.ndarray]:
        """Inputs of the image side that are made of prompts, by name; none where votes don't depend on them."""
        return self.image_side.instruct(prompts)

    def encode(self, pixel_values: np.ndarray, prompts: Sequence[str] = (), encoder: EncoderWish = DEFAULT) -> Encoded:
        """Images encoded, with a prompt for each where votes depend on prompts."""
        return self.image_side.encode(pixel_values, prompts, encoder)

    def prune(self, encoded: Encoded, kept: int) -> Pruned:
        """The `kept` tokens of each image that it votes for most, in the engine's memory."""
        return self.image_side.prune(encoded, kept)

    def votes(self, encoded: Encoded) -> Votes:
        """All tokens of each image with their scores, in host memory."""
        return self.image_side.votes(encoded)

    def tokenize(self, prompt: str) -> list[int]:
        """Token ids of a prompt, special tokens included."""
        return self._text.encode(prompt)

    def detokenize(self, token_ids: Sequence[int], stop_strings: Sequence[str] = ()) -> str:
        """Text of generated tokens, up to the first of the stop strings."""
        return self._text.decode(token_ids, stop_strings)
