"""Exported graphs against the checkpoint: what must hold before a bundle is published.

References are computed by PyTorch before the graphs are traced, so that the checkpoint can be freed before ONNX
Runtime loads the same weights again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from catp.export.reference import Greedy, Reference, Votes, rank_points
from catp.runtime.bundle import Bundle
from catp.runtime.engines import open_provider
from catp.runtime.engines.base import Engine
from catp.runtime.generation import bind_prefill
from catp.runtime.manifest import ParityCheck, Positions
from catp.runtime.pipeline import Pipeline
from catp.runtime.pruning import num_kept

MAX_NEW_TOKENS = 12

RELATIVE_ERROR = {"fp32": 1e-4, "fp16": 3e-2}
"""Largest absolute difference, relative to the largest absolute value of the output."""

TOKEN_MISMATCH = {"fp32": 0.0, "fp16": 0.1}
"""Share of sample prompts whose greedy tokens may differ, beyond near ties of the logits."""


@dataclass(frozen=True)
class Sample:
    """An image with a prompt, of the kind the model is asked."""

    image: Image.Image
    prompt: str


@dataclass(frozen=True)
class References:
    """Everything PyTorch has to say about the samples."""

    samples: Sequence[Sample]
    prompt_ids: list[list[int]]
    pixel_values: np.ndarray
    image_embeds: np.ndarray
    query_embeds: np.ndarray  # [B, N, Dl], all of them, projected
    votes: Votes
    kept: int
    position_start: int
    kept_indices: np.ndarray  # int64 [B, kept]: the top of the reference's own scores
    pruned: list[Greedy]  # per row, after the kept tokens of `kept_indices`
    unpruned: list[list[int]]  # Hugging Face generate()


def compute_references(
    reference: Reference, samples: Sequence[Sample], method: str, ratio: float, positions: Positions
) -> References:
    """Run the checkpoint on the samples, with all query tokens and with those left at `ratio`."""
    prompt_ids = [reference.tokenize(sample.prompt) for sample in samples]
    pixel_values = reference.pixel_values([sample.image for sample in samples])
    image_embeds = reference.image_embeds(pixel_values)
    query_embeds, maps = reference.query_embeds(image_embeds)
    batch, queries = query_embeds.shape[:2]
    votes = rank_points(maps) if method == "catp" else Votes(*np.zeros((2, batch, queries), np.int64))
    kept = num_kept(ratio, queries)
    kept_indices = np.sort(np.argsort(-votes.scores, axis=1, kind="stable")[:, :kept], axis=1)
    start = queries if positions == "original" else kept
    pruned = [
        reference.continue_greedily(
            query_embeds[row, indices],
            indices.tolist() if positions == "original" else range(kept),
            start,
            prompt_ids[row],
            MAX_NEW_TOKENS,
        )
        for row, indices in enumerate(kept_indices)
    ]
    unpruned = [
        reference.generate(pixel_values[row : row + 1], ids, MAX_NEW_TOKENS) for row, ids in enumerate(prompt_ids)
    ]
    return References(
        samples=samples,
        prompt_ids=prompt_ids,
        pixel_values=pixel_values.numpy(),
        image_embeds=image_embeds.numpy(),
        query_embeds=query_embeds.numpy(),
        votes=votes,
        kept=kept,
        position_start=start,
        kept_indices=kept_indices,
        pruned=pruned,
        unpruned=unpruned,
    )


def check_parity(bundle: Bundle, references: References) -> list[ParityCheck]:
    """Compare a bundle, run by ONNX Runtime on the CPU, with the references."""
    provider = open_provider("cpu")
    limit = RELATIVE_ERROR[bundle.manifest.precision]
    checks = [
        _vision(provider.engine(bundle, "vision_encoder"), references, limit),
        *_qformer(provider.engine(bundle, "qformer_voting"), bundle, references, limit),
        _language_model(provider.engine(bundle, "language_model"), bundle, references, limit),
    ]
    return [*checks, *_end_to_end(Pipeline(bundle, provider), references)]


def _check(subject: str, measure: str, value: float | np.floating, limit: float) -> ParityCheck:
    # NaN compares false, and so fails.
    return ParityCheck(subject=subject, measure=measure, value=float(value), limit=limit, passed=bool(value <= limit))


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """Largest absolute difference, relative to the largest absolute value expected."""
    actual, expected = actual.astype(np.float64), expected.astype(np.float64)
    return float(np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-30))


def _vision(engine: Engine, references: References, limit: float) -> ParityCheck:
    actual = engine.bind({"pixel_values": references.pixel_values}).run()["image_embeds"].numpy()
    return _check(
        "vision_encoder", "image_embeds: relative error", relative_error(actual, references.image_embeds), limit
    )


def _qformer(engine: Engine, bundle: Bundle, references: References, limit: float) -> Iterator[ParityCheck]:
    dtype = bundle.manifest.graphs["qformer_voting"].input("image_embeds").dtype
    inputs = {"image_embeds": references.image_embeds.astype(dtype), "num_kept": np.array([references.kept])}
    outputs = {name: tensor.numpy() for name, tensor in engine.bind(inputs).run().items()}
    kept_indices, scores = outputs["kept_indices"], outputs["token_scores"]
    expected = np.take_along_axis(references.query_embeds, kept_indices[:, :, None], axis=1)
    yield _check(
        "qformer_voting", "kept_embeds: relative error", relative_error(outputs["kept_embeds"], expected), limit
    )
    votes = references.votes
    if dtype == "float32":  # in half precision the graph is given rounded image embeddings, and votes on those
        excess = np.abs(scores - votes.scores) - votes.slack
        yield _check("qformer_voting", "token_scores: points off beyond near ties", excess.max(initial=0), 0)
    wrong = unexplained(kept_indices, references.kept_indices, votes)
    rows = len(kept_indices)
    yield _check(
        "qformer_voting", "kept sets that differ beyond near ties", wrong / rows, 0 if dtype == "float32" else 0.5
    )
    top = np.sort(np.argsort(-scores, axis=1, kind="stable")[:, : references.kept], axis=1)
    yield _check(
        "qformer_voting", "kept sets that are not the top of the graph's scores", (top != kept_indices).any(1).mean(), 0
    )


def unexplained(actual: np.ndarray, expected: np.ndarray, votes: Votes) -> int:
    """In how many rows the kept sets differ and the scores of what was exchanged are not within their slack."""
    rows = 0
    for row, (a, e) in enumerate(zip(actual, expected)):
        came, went = np.setdiff1d(a, e), np.setdiff1d(e, a)
        scores, slack = votes.scores[row], votes.slack[row]
        gaps = scores[went][:, None] - scores[came][None]
        rows += bool((gaps > slack[went][:, None] + slack[came][None]).any())
    return rows


def _language_model(engine: Engine, bundle: Bundle, references: References, limit: float) -> ParityCheck:
    """Logits of a ragged prefill of all rows, and of a second one that also contains the first generated token."""
    graph = bundle.manifest.graphs["language_model"]
    prefix = np.take_along_axis(references.query_embeds, references.kept_indices[:, :, None], axis=1)
    original = references.position_start == references.query_embeds.shape[1]
    positions = references.kept_indices if original else np.tile(np.arange(references.kept), (len(prefix), 1))
    worst = 0.0
    for step in range(2):
        rows = [row for row, greedy in enumerate(references.pruned) if len(greedy.token_ids) > step]
        if not rows:
            continue
        text = [references.prompt_ids[row] + references.pruned[row].token_ids[:step] for row in rows]
        prefill = bind_prefill(
            engine,
            graph,
            prefix[rows].astype(graph.input("prefix_embeds").dtype),
            positions[rows],
            references.position_start,
            text,
            pad_token_id=bundle.manifest.text.pad_token_id,
        )
        expected = np.stack([references.pruned[row].logits[step] for row in rows])
        worst = max(worst, relative_error(prefill.run()["logits"].numpy(), expected))
    return _check("language_model", "logits: relative error", worst, limit)


def _end_to_end(pipeline: Pipeline, references: References) -> Iterator[ParityCheck]:
    precision = pipeline.manifest.precision
    images = [sample.image for sample in references.samples]
    prompts = [sample.prompt for sample in references.samples]
    ids = [pipeline.tokenize(prompt) for prompt in prompts]
    yield _check(
        "tokenizer", "prompts with other token ids", sum(a != e for a, e in zip(ids, references.prompt_ids)), 0
    )

    std = np.array(pipeline.manifest.image.image_std)[:, None, None]
    difference = np.abs(pipeline.preprocess(images) - references.pixel_values) * std
    yield _check("preprocessing", "pixel_values: largest difference, of 1", difference.max(), 1 / 255)

    limit = TOKEN_MISMATCH[precision]
    single = [
        pipeline.generate([image], [prompt], ratio=0, max_new_tokens=MAX_NEW_TOKENS)[0]
        for image, prompt in zip(images, prompts)
    ]
    wrong = np.mean([answer.token_ids != e for answer, e in zip(single, references.unpruned)])
    yield _check("pipeline", "unpruned, singly: prompts with other tokens than generate()", wrong, limit)

    ragged = pipeline.generate(images, prompts, max_new_tokens=MAX_NEW_TOKENS)
    tolerance = RELATIVE_ERROR[precision]
    wrong = np.mean(
        [
            answer.kept_indices == kept.tolist() and not same_tokens(answer.token_ids, greedy, tolerance)
            for answer, greedy, kept in zip(ragged, references.pruned, references.kept_indices)
        ]
    )
    yield _check("pipeline", "pruned, as a ragged batch: prompts with other tokens", wrong, limit)


def same_tokens(actual: Sequence[int], expected: Greedy, tolerance: float) -> bool:
    """Whether greedy tokens agree up to the first step at which the two best logits are a near tie."""
    for step, token in enumerate(expected.token_ids):
        if step < len(actual) and actual[step] == token:
            continue
        if step >= len(actual):
            return False
        logits = expected.logits[step]
        return bool(logits[token] - logits[actual[step]] <= 2 * tolerance * np.abs(logits).max())
    return len(actual) == len(expected.token_ids)
