"""What half precision changes on the demo's held-out questions: embeddings, votes, tokens."""

from dataclasses import dataclass

import numpy as np
import pytest

from catp.calibration.data import open_data
from catp.export.verification.emulated import emulated
from catp.runtime.bundle.folder import open_bundle
from catp.runtime.pipeline import Pipeline
from catp.runtime.providers.base import to_host

QUESTIONS = 96
LIMITS = {  # cosine of embeddings at least, kept tokens alike at least, equal greedy tokens at least
    "fp16": (0.99999, 0.99, 0.99),
    "bf16": (0.999, 0.98, 0.97),
}


@dataclass
class Results:
    embeds: np.ndarray  # [n, I, Dv]
    kept: np.ndarray  # [n, 16]
    tokens: dict[int, list[list[int]]]  # by number of kept tokens


def results(pipeline: Pipeline) -> Results:
    questions = list(open_data("demo").subset(QUESTIONS, None, 4711))
    embeds, kept = [], []
    tokens: dict[int, list[list[int]]] = {32: [], 16: []}
    for start in range(0, QUESTIONS, 16):
        batch = questions[start : start + 16]
        encoded = pipeline.encode(pipeline.preprocess([question.image for question in batch]))
        embeds.append(encoded["image_embeds"].numpy().astype(np.float64))
        prompts = [pipeline.tokenize(question.prompt) for question in batch]
        for count in tokens:
            pruned = pipeline.prune(encoded, count)
            tokens[count] += pipeline.decode(pruned, prompts, 8).token_ids
        kept.append(to_host(pruned.kept_indices).copy())
    return Results(np.concatenate(embeds), np.concatenate(kept), tokens)


@pytest.fixture(scope="module")
def full(pipeline: Pipeline) -> Results:
    return results(pipeline)


@pytest.mark.parametrize(
    ("precision", "fixture"), [("fp16", "half_bundle"), pytest.param("bf16", "bf16_bundle", marks=pytest.mark.heavy)]
)
def test_held_out_questions(precision: str, fixture: str, full: Results, request: pytest.FixtureRequest) -> None:
    found = results(Pipeline(*emulated(open_bundle(request.getfixturevalue(fixture)))))
    cosine, overlap, equal = LIMITS[precision]
    norms = np.linalg.norm(found.embeds, axis=-1) * np.linalg.norm(full.embeds, axis=-1)
    cosines = (found.embeds * full.embeds).sum(-1) / norms
    assert cosine <= cosines.min() < 1 - 1e-12  # not the very same graphs
    alike = np.mean([len(np.intersect1d(a, b)) for a, b in zip(found.kept, full.kept)]) / 16
    assert alike >= overlap
    for count, tokens in found.tokens.items():
        same = np.mean([a == b for a, b in zip(tokens, full.tokens[count])])
        assert same >= equal, f"{count} tokens kept"
