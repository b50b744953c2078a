"""The decoder-only language model: prefixes that are read once, and rows that change places."""

from __future__ import annotations

import numpy as np
import pytest

from catp.runtime import Pipeline
from catp.runtime.language_models.base import Batch
from catp.runtime.language_models.decoder_only import _WORTH_A_PASS
from catp.runtime.providers.base import to_host

IMAGES, KEPT = 2, 20
ASKED = [0, 1, 1, 0, 1, 0, 1]


@pytest.fixture(scope="module")
def odd(odd_bundle: object) -> Pipeline:
    return Pipeline.load(odd_bundle)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def batches(odd: Pipeline) -> tuple[Batch, Batch]:
    """Ragged prompts, each about one of two images: named, and with the image's tokens repeated."""
    rng = np.random.default_rng(0)
    width = int(odd.manifest.graphs["language_model"].input("prefix_embeds").shape[2])
    embeds = rng.normal(0, 1, (IMAGES, KEPT, width)).astype(np.float32)
    positions = np.sort(rng.permuted(np.tile(np.arange(24), (IMAGES, 1)), axis=1)[:, :KEPT])
    prompts = [rng.integers(5, 300, 2 + row).tolist() for row in range(len(ASKED))]
    assert KEPT * (len(ASKED) - IMAGES) >= _WORTH_A_PASS
    return Batch(embeds, positions, 24, prompts, ASKED), Batch(embeds[ASKED], positions[ASKED], 24, prompts)


def test_a_prefix_read_once_is_as_good_as_one_read_for_each_prompt(odd: Pipeline, batches: tuple[Batch, Batch]) -> None:
    once, each = (odd.language_model.begin(batch, 4, output="logits") for batch in batches)
    tokens = np.arange(len(ASKED)) + 10
    for found, wanted in ((once.prefill(), each.prefill()), (once.step(tokens), each.step(tokens))):
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)
        assert np.ptp(wanted, axis=0).max() > 0.1  # rows differ


def test_a_few_prompts_about_one_image_are_read_with_it(odd: Pipeline, batches: tuple[Batch, Batch]) -> None:
    """Where the images' tokens lie in the engine's memory, too."""
    few = batches[0]
    for embeds in (few.prefix_embeds, _on_engine(odd, to_host(few.prefix_embeds))):
        named = Batch(embeds, few.prefix_positions, 24, few.prompts[:2], [1, 1])
        found = odd.language_model.begin(named, 1, output="logits").prefill()
        repeated = Batch(few.prefix_embeds[[1, 1]], few.prefix_positions[[1, 1]], 24, few.prompts[:2])  # type: ignore[index]
        wanted = odd.language_model.begin(repeated, 1, output="logits").prefill()
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def _on_engine(pipeline: Pipeline, array: np.ndarray) -> object:
    tensor = pipeline.language_model.engine.zeros(array.shape, "float32")  # type: ignore[attr-defined]
    tensor.value.update_inplace(array)
    return tensor


def test_reordered_beams_go_on_from_their_parents(odd: Pipeline, batches: tuple[Batch, Batch]) -> None:
    """Two beams a prompt: each row's logits are those of its own tokens, read from the beginning."""
    batch = batches[1]
    beams = odd.language_model.begin(batch, 8, beams=2, output="logits")
    beams.prefill()
    rows = np.arange(2 * len(ASKED))
    beams.reorder(rows // 2)
    rng = np.random.default_rng(1)
    answers: list[list[int]] = [[] for _ in rows]
    for _ in range(5):
        tokens = rng.integers(5, 300, len(rows))
        answers = [[*ids, int(token)] for ids, token in zip(answers, tokens)]
        logits = beams.step(tokens)
        wanted = odd.language_model.begin(
            Batch(
                np.repeat(batch.prefix_embeds, 2, 0),  # type: ignore[arg-type]
                np.repeat(batch.prefix_positions, 2, 0),  # type: ignore[arg-type]
                24,
                [[*batch.prompts[row // 2], *ids] for row, ids in enumerate(answers)],
            ),
            1,
            output="logits",
        ).prefill()
        np.testing.assert_allclose(logits, wanted, rtol=1e-3, atol=1e-4)
        parents = rows // 2 * 2 + rng.integers(0, 2, len(rows))
        beams.reorder(parents)
        answers = [answers[parent] for parent in parents]
