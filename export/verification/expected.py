"""PyTorch's results for sample images and prompts.

It is computed before the graphs are traced, so that the checkpoint can be freed before ONNX Runtime loads the same
weights again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image

from catp.export.image_encoders.pruned_reference import PrunedEmbeds
from catp.export.verification.continuations import Greedy
from catp.export.verification.reference import Reference, ReferenceVotes, count_votes
from catp.export.voting.base import VotingMethod
from catp.runtime.bundle.manifest import Positions
from catp.runtime.matching import Scores
from catp.runtime.pruning import num_kept

MAX_NEW_TOKENS = 12


@dataclass(frozen=True)
class Sample:
    """An image or a video with a prompt, of the kind the model is asked."""

    image: Image.Image | Sequence[Image.Image]  # frames, as many in every sample
    prompt: str

    @property
    def frames(self) -> Sequence[Image.Image]:
        """The pictures that the vision encoder sees, one where it is an image."""
        return [self.image] if isinstance(self.image, Image.Image) else self.image


@dataclass(frozen=True)
class ExpectedImages:
    """PyTorch's results for the samples' images.

    B rows, one for each frame where samples are videos: F times as many, those of a video together.
    """

    samples: Sequence[Sample]
    prompt_ids: list[list[int]]
    instructions: dict[str, np.ndarray]  # by the Q-Former graph's input, int64 [B, T]; empty where none reads them
    pixel_values: np.ndarray  # float32 [B, 3, H, W]
    image_embeds: np.ndarray  # float32 [B, I, Dv]
    image_weights: np.ndarray  # float32 [B, I]
    pruned_images: PrunedEmbeds | None  # of a vision encoder that prunes

    @property
    def frames(self) -> int:
        return len(self.samples[0].frames)

    @property
    def frame_prompts(self) -> list[str]:
        """The prompt that each row is about."""
        return [sample.prompt for sample in self.samples for _ in sample.frames]


@dataclass(frozen=True)
class ExpectedAnswers(ExpectedImages):
    """And what a model that reads image tokens answers."""

    greedy: list[Greedy]  # Hugging Face generate(), and the keys and values that its decoder reads


@dataclass(frozen=True)
class ExpectedJudgements(ExpectedImages):
    """And how true each prompt is as a statement about its two images."""

    truth_logits: np.ndarray  # float32 [B / 2, 2]: false, true


@dataclass(frozen=True)
class ExpectedVotes(ExpectedImages):
    """And of a Q-Former, and of a prompt that it reads."""

    query_embeds: np.ndarray  # float32 [B, N, Dl], all of them, projected
    votes: ReferenceVotes
    compared: dict[str, ReferenceVotes]  # what the diagnostics should say of other methods
    kept_indices: np.ndarray  # int64 [B, k]: the top of `votes`

    @property
    def num_kept(self) -> int:
        return self.kept_indices.shape[1]

    @property
    def kept_embeds(self) -> np.ndarray:
        """float32 [B, k, Dl]"""
        return np.take_along_axis(self.query_embeds, self.kept_indices[:, :, None], axis=1)

    # What the language model reads: a row for each sample, its frames one after another.

    @property
    def sample_embeds(self) -> np.ndarray:
        """float32 [B / F, F x N, Dl]"""
        return self.query_embeds.reshape(len(self.samples), -1, self.query_embeds.shape[2])

    @property
    def sample_kept(self) -> np.ndarray:
        """int64 [B / F, F x k]: which of `sample_embeds` are kept"""
        first = np.arange(self.frames)[:, None] * self.query_embeds.shape[1]
        return (self.kept_indices.reshape(len(self.samples), self.frames, -1) + first).reshape(len(self.samples), -1)

    @property
    def sample_kept_embeds(self) -> np.ndarray:
        """float32 [B / F, F x k, Dl]"""
        return np.take_along_axis(self.sample_embeds, self.sample_kept[:, :, None], axis=1)


@dataclass(frozen=True)
class Expected(ExpectedVotes):
    """And what its language model answers."""

    pruned: dict[Positions, list[Greedy]]  # per position mode and row, after the kept tokens
    unpruned: list[Greedy]  # Hugging Face generate()


@dataclass(frozen=True)
class ExpectedMatches(ExpectedVotes):
    """And how it scores the prompts, as texts."""

    text_embeds: np.ndarray  # float32 [B, Dt]
    every: Scores  # with all query tokens
    kept: Scores  # with the kept ones


@dataclass(frozen=True)
class ExpectedPairs(ExpectedImages):
    """And how a model that reads image tokens scores the prompts, as texts, each against its own image."""

    text_embeds: np.ndarray  # float32 [B, Dt]
    image_vectors: np.ndarray  # float32 [B, Dt]
    scores: Scores
    scaled: np.ndarray | None  # float32 [B]: Hugging Face's logits_per_image, where the model has a scale


def compute_expected(
    reference: Reference,
    samples: Sequence[Sample],
    method: VotingMethod,
    ratio: float,
    image_embeds_dtype: torch.dtype,
    compared: Sequence[VotingMethod] = (),
) -> ExpectedImages:
    """Run the checkpoint on the samples, with all query tokens, if it has any, and with some of them pruned.

    Args:
        ratio: what is pruned; where it is 0, half, for the bundle will serve other ratios too.
        image_embeds_dtype: of the Q-Former graph's input. PyTorch votes on image embeddings rounded to it: what the
            vision encoder's precision does to the votes is not the voting head's fault.
    """
    prompt_ids = [reference.tokenize(sample.prompt) for sample in samples]
    pixel_values = reference.pixel_values([frame for sample in samples for frame in sample.frames])
    seen = reference.image_embeds(pixel_values)
    image_embeds, image_weights = seen.embeds.to(image_embeds_dtype).float(), seen.weights
    images = ExpectedImages(
        samples,
        prompt_ids,
        {},
        pixel_values.numpy(),
        image_embeds.numpy(),
        image_weights.numpy(),
        seen.pruned,
    )
    if not reference.votes:
        if reference.generates_text:
            return _with_greedy(reference, images)
        return _with_judgements(reference, images) if reference.judges else _with_pairs(reference, images)
    instructions = reference.instructions([sample.prompt for sample in samples for _ in sample.frames])
    query_embeds, evidence = reference.query_embeds(image_embeds, image_weights, instructions)
    queries = query_embeds.shape[1]
    votes = count_votes(method, evidence)
    kept = queries if method.name == "none" else num_kept(ratio or 0.5, queries)
    kept_indices = np.sort(np.argsort(-votes.scores, axis=1, kind="stable")[:, :kept], axis=1)
    if instructions is not None:
        read = {"instruction_ids": instructions.ids.numpy(), "instruction_mask": instructions.mask.numpy()}
        images = replace(images, instructions=read)
    shared = ExpectedVotes(
        **vars(images),
        query_embeds=query_embeds.numpy(),
        votes=votes,
        compared={other.name: count_votes(other, evidence) for other in compared},
        kept_indices=kept_indices,
    )
    return _with_answers(reference, shared) if reference.generates_text else _with_matches(reference, shared)


def _with_greedy(reference: Reference, images: ExpectedImages) -> ExpectedAnswers:
    """Greedy answers to each question by itself, so that none is padded."""
    pixel_values = torch.from_numpy(images.pixel_values).split(1)
    greedy = [reference.answer(pixels, ids, MAX_NEW_TOKENS) for pixels, ids in zip(pixel_values, images.prompt_ids)]
    return ExpectedAnswers(**vars(images), greedy=greedy)


def _with_pairs(reference: Reference, images: ExpectedImages) -> ExpectedPairs:
    """Scores of each text by itself, so that none is padded."""
    pixel_values = torch.from_numpy(images.pixel_values).split(1)
    pairs = [reference.pair(pixels, ids) for pixels, ids in zip(pixel_values, images.prompt_ids)]
    logits = [pair.logits for pair in pairs if pair.logits is not None]
    scaled = [pair.scaled for pair in pairs if pair.scaled is not None]
    return ExpectedPairs(
        **vars(images),
        text_embeds=np.stack([pair.text for pair in pairs]),
        image_vectors=np.stack([pair.image for pair in pairs]),
        scores=Scores(np.stack(logits) if logits else None, np.array([pair.similarity for pair in pairs])),
        scaled=np.array(scaled) if scaled else None,
    )


def _with_judgements(reference: Reference, images: ExpectedImages) -> ExpectedJudgements:
    """Each statement by itself, so that none is padded."""
    pairs = torch.from_numpy(images.pixel_values).split(images.frames)
    logits = [reference.judge(pair, ids) for pair, ids in zip(pairs, images.prompt_ids)]
    return ExpectedJudgements(**vars(images), truth_logits=np.stack(logits))


def _with_answers(reference: Reference, shared: ExpectedVotes) -> Expected:
    """Greedy answers, of the kept tokens in both position modes."""
    query_embeds = torch.from_numpy(shared.sample_embeds)
    pixel_values = torch.from_numpy(shared.pixel_values).split(shared.frames)
    pruned: dict[Positions, list[Greedy]] = {"original": [], "compact": []}
    for row, ids in enumerate(shared.prompt_ids):
        for positions, greedy in pruned.items():
            greedy.append(
                reference.continue_greedily(query_embeds[row], shared.sample_kept[row], positions, ids, MAX_NEW_TOKENS)
            )
    unpruned = [
        reference.generate(pixels, ids, MAX_NEW_TOKENS, reference.instructions([sample.prompt]))
        for sample, pixels, ids in zip(shared.samples, pixel_values, shared.prompt_ids)
    ]
    return Expected(**vars(shared), pruned=pruned, unpruned=unpruned)


def _with_matches(reference: Reference, shared: ExpectedVotes) -> ExpectedMatches:
    """Scores of every text against its image."""
    queries = np.arange(shared.query_embeds.shape[1])
    sides = [
        reference.contrast(torch.from_numpy(shared.pixel_values[row : row + 1]), ids)
        for row, ids in enumerate(shared.prompt_ids)
    ]

    def scores(kept_of_row: Sequence[np.ndarray]) -> Scores:
        logits, similarity = [], []
        for row, (ids, kept, (text, image)) in enumerate(zip(shared.prompt_ids, kept_of_row, sides)):
            logits.append(reference.match(torch.from_numpy(shared.pixel_values[row : row + 1]), ids, kept.tolist()))
            similarity.append((image[kept] @ text).max())
        return Scores(np.array(logits), np.array(similarity))

    return ExpectedMatches(
        **vars(shared),
        text_embeds=np.array([text for text, _ in sides]),
        every=scores([queries] * len(sides)),
        kept=scores(list(shared.kept_indices)),
    )
