"""Scores of texts, classes and statements against pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from catp.runtime.bundle.folder import Bundle
from catp.runtime.errors import UsageError
from catp.runtime.image_sides.pruned_encoder import DEFAULT, EncoderWish
from catp.runtime.image_sides.query_tokens import Encoded, kept_of_rows
from catp.runtime.inputs.image_files import ImageSource
from catp.runtime.matching import Match, Matching, Pictures, open_matching
from catp.runtime.matching.two_images import Judging, Verdict, verdicts
from catp.runtime.matching.zero_shot import TEMPLATE, Classes, check_classes, class_vectors, probabilities
from catp.runtime.pipeline.stages import Stages
from catp.runtime.providers.base import Provider, to_host
from catp.runtime.questions import find_repeated


class Scoring(Stages):
    """Scores and vectors by a bundle that compares pictures with texts."""

    def __init__(self, bundle: Bundle, provider: Provider) -> None:
        super().__init__(bundle, provider)
        self._matching = open_matching(bundle, provider)
        self._judging = Judging(bundle, provider) if bundle.manifest.model.language == "two-images" else None

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
        return replace(matching.see(encoded, pruned), counts=encoded.get("kept_counts"))

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
