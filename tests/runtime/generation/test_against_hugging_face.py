"""Tokens are those of Hugging Face's generate() for the same settings: alone, in a batch of eight, pruned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from catp.export.checkpoints.loading import Checkpoint, load_checkpoint
from catp.export.demo import scenes
from catp.export.verification.reference import Reference
from catp.runtime import Pipeline
from catp.runtime.bundle.folder import Bundle
from catp.runtime.providers import open_provider

EXAMPLES = list(scenes.examples(8, seed=5))
IMAGES = [example.image for example in EXAMPLES]
PROMPTS = [example.question.prompt for example in EXAMPLES]
NEW_TOKENS = 10

BEAMS: list[dict[str, Any]] = [
    {"num_beams": 3},
    {"num_beams": 4, "length_penalty": 2.0},
    {"num_beams": 4, "length_penalty": -1.0, "early_stopping": True},
    {"num_beams": 3, "length_penalty": 0.0, "early_stopping": "never"},
    {"num_beams": 2, "length_penalty": 0.7, "early_stopping": "never"},
]
SETTINGS: list[dict[str, Any]] = [
    *BEAMS,
    {"repetition_penalty": 1.7},
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 2},
    {"min_new_tokens": 6},
    {"min_length": 45},
    {"stop_strings": ["la", "w c"]},
    {"num_beams": 3, "stop_strings": ["ck ", "ed"]},
    {"num_beams": 3, "min_new_tokens": 5, "repetition_penalty": 1.2, "no_repeat_ngram_size": 2},
]


class Both:
    """A checkpoint in Hugging Face and its bundle."""

    def __init__(self, checkpoint: Checkpoint, bundle: Path) -> None:
        self.model = checkpoint.model
        self.tokenizer = checkpoint.tokenizer
        self.reference = Reference(checkpoint)
        self.pipeline = Pipeline.load(bundle)
        self.pixel_values = self.reference.pixel_values(IMAGES)

    @torch.no_grad()
    def hugging_face(self, row: int, **settings: Any) -> list[int]:
        config = self.model.config
        ids = torch.tensor(
            [[config.image_token_index] * config.num_query_tokens + self.reference.tokenize(PROMPTS[row])]
        )
        output = self.model.generate(
            pixel_values=self.pixel_values[row : row + 1],
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            tokenizer=self.tokenizer if "stop_strings" in settings else None,
            **settings,
        )
        return output[0, ids.shape[1] :].tolist()

    def ending_at(self, eos: tuple[int, ...]) -> Pipeline:
        """The pipeline, with other end tokens."""
        manifest = self.pipeline.manifest
        text = manifest.text.model_copy(update={"eos_token_ids": eos})
        bundle = Bundle(self.pipeline.bundle.path, manifest.model_copy(update={"text": text}))
        return Pipeline(bundle, open_provider("cpu"))


@pytest.fixture(scope="module")
def demo(demo_checkpoint: Checkpoint, demo_bundle: Path) -> Both:
    """OPT, trained: short answers that end."""
    return Both(demo_checkpoint, demo_bundle)


@pytest.fixture(scope="module")
def odd(odd_checkpoint: Path, odd_bundle: Path) -> Both:
    """A Llama with grouped queries, random: long answers that don't."""
    return Both(load_checkpoint(str(odd_checkpoint)), odd_bundle)


@pytest.fixture(scope="module", params=["demo", "odd"])
def both(request: pytest.FixtureRequest) -> Both:
    return request.getfixturevalue(request.param)


def singles(pipeline: Pipeline, **settings: Any) -> list[list[int]]:
    return [pipeline.generate([i], [p], ratio=0, **settings)[0].token_ids for i, p in zip(IMAGES, PROMPTS)]


def batch(pipeline: Pipeline, **settings: Any) -> list[list[int]]:
    return [answer.token_ids for answer in pipeline.generate(IMAGES, PROMPTS, ratio=0, **settings)]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_alone_and_in_a_batch(both: Both, settings: dict[str, Any]) -> None:
    wanted = [both.hugging_face(row, max_new_tokens=NEW_TOKENS, **settings) for row in range(len(PROMPTS))]
    assert singles(both.pipeline, max_new_tokens=NEW_TOKENS, **settings) == wanted
    assert batch(both.pipeline, max_new_tokens=NEW_TOKENS, **settings) == wanted


def test_the_settings_matter(both: Both) -> None:
    """Were they ignored on both sides, the comparisons above would pass all the same."""
    answers = [str(batch(both.pipeline, max_new_tokens=NEW_TOKENS, **settings)) for settings in ({}, *SETTINGS)]
    assert len(set(answers)) >= 6


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"num_beams": 2, "min_new_tokens": 4}], ids=str)
def test_several_end_tokens(odd: Both, settings: dict[str, Any]) -> None:
    usual = batch(odd.pipeline, max_new_tokens=NEW_TOKENS, **settings)
    ends = tuple(sorted({usual[0][5], usual[3][2], 2}))
    pipeline = odd.ending_at(ends)
    wanted = [odd.hugging_face(row, max_new_tokens=NEW_TOKENS, eos_token_id=list(ends), **settings) for row in range(8)]
    assert any(len(ids) < NEW_TOKENS for ids in wanted)
    assert singles(pipeline, max_new_tokens=NEW_TOKENS, **settings) == wanted
    assert batch(pipeline, max_new_tokens=NEW_TOKENS, **settings) == wanted


@pytest.mark.parametrize("settings", [{}, {"num_beams": 2}], ids=str)
def test_a_length_that_counts_image_and_prompt(both: Both, settings: dict[str, Any]) -> None:
    counted = max(len(both.pipeline.tokenize(prompt)) for prompt in PROMPTS)
    length = both.model.config.num_query_tokens + counted + 3
    wanted = [both.hugging_face(row, max_length=length, **settings) for row in range(8)]
    assert len({len(ids) for ids in wanted}) > 1
    assert batch(both.pipeline, max_length=length, **settings) == wanted


@pytest.mark.parametrize("settings", BEAMS, ids=str)
def test_pruned_beams(demo: Both, settings: dict[str, Any]) -> None:
    """Compact positions are those that the language model takes by itself, so its own generate() is the reference."""
    lm = demo.model.language_model
    query_embeds, _ = demo.reference.query_embeds(demo.reference.image_embeds(demo.pixel_values).embeds)
    answers = demo.pipeline.generate(
        IMAGES, PROMPTS, ratio=0.75, positions="compact", max_new_tokens=NEW_TOKENS, min_new_tokens=4, **settings
    )
    for row, answer in enumerate(answers):
        words = lm.get_input_embeddings()(torch.tensor(demo.reference.tokenize(PROMPTS[row])))
        embeds = torch.cat([query_embeds[row, answer.kept_indices], words])[None]
        with torch.no_grad():
            output = lm.generate(
                inputs_embeds=embeds,
                attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
                max_new_tokens=NEW_TOKENS,
                min_new_tokens=4,
                **settings,
            )
        assert answer.token_ids == output[0].tolist()


def test_a_sampled_search_is_drawn_from_hugging_face_s_distribution(odd: Both) -> None:
    """Two beams of three tokens: how often each answer comes, here and there (chi-square of two samples)."""
    count, settings = 400, {"num_beams": 2, "do_sample": True, "top_k": 4, "temperature": 4.0, "max_new_tokens": 3}
    config = odd.model.config
    ids = [config.image_token_index] * config.num_query_tokens + odd.reference.tokenize(PROMPTS[0])
    torch.manual_seed(0)
    with torch.no_grad():
        theirs = odd.model.generate(
            pixel_values=odd.pixel_values[:1].expand(count, -1, -1, -1),
            input_ids=torch.tensor([ids] * count),
            attention_mask=torch.ones(count, len(ids), dtype=torch.long),
            **settings,
        )[:, len(ids) :].tolist()
    ours = [a.token_ids for a in odd.pipeline.ask(IMAGES[0], [PROMPTS[0]] * count, ratio=0, seed=0, **settings)]
    observed = _table([theirs, ours])
    assert observed.shape[1] >= 4
    expected = observed.sum(0) * observed.sum(1, keepdims=True) / observed.sum()
    assert ((observed - expected) ** 2 / expected).sum() < _chi_square_limit(observed.shape[1] - 1)


def _table(samples: list[list[list[int]]]) -> np.ndarray:
    """How often each answer is in each sample; rare ones together."""
    keys = sorted({tuple(ids) for sample in samples for ids in sample})
    counts = np.array([[sum(tuple(ids) == key for ids in sample) for key in keys] for sample in samples])
    rare = counts.sum(0) < 20
    return np.column_stack([counts[:, ~rare], counts[:, rare].sum(1)])[:, : len(keys) - rare.sum() + rare.any()]


def _chi_square_limit(freedom: int) -> float:
    """What one sample in 10,000 exceeds (Wilson and Hilferty's approximation)."""
    return freedom * (1 - 2 / (9 * freedom) + 3.719 * np.sqrt(2 / (9 * freedom))) ** 3


@pytest.mark.parametrize(
    "settings",
    [
        {"top_k": 0},
        {"top_k": 5, "temperature": 2.5},
        {"top_k": 0, "top_p": 0.7, "temperature": 0.6},
        {"top_p": 0.9, "temperature": 3.0, "repetition_penalty": 1.5},
    ],
    ids=str,
)
def test_tokens_are_drawn_from_hugging_face_s_distribution(odd: Both, settings: dict[str, Any]) -> None:
    """The softmax of the scores that generate() draws its first token from, against 1,000 tokens drawn here."""
    config, count = odd.model.config, 1000
    ids = torch.tensor([[config.image_token_index] * config.num_query_tokens + odd.reference.tokenize(PROMPTS[0])])
    with torch.no_grad():
        output = odd.model.generate(
            pixel_values=odd.pixel_values[:1],
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=1,
            do_sample=True,
            return_dict_in_generate=True,
            output_scores=True,
            output_logits=True,
            **settings,
        )
    answers = odd.pipeline.ask(
        IMAGES[0], [PROMPTS[0]] * count, ratio=0, max_new_tokens=1, do_sample=True, seed=1, **settings
    )
    observed = np.bincount([answer.token_ids[0] for answer in answers], minlength=config.text_config.vocab_size)

    def distance(scores: torch.Tensor) -> tuple[float, float]:
        """Chi-square, and its limit; tokens expected fewer than five times count as one."""
        expected = count * scores[0].double().softmax(0).numpy()
        rare = expected < 5
        counted = np.append(observed[~rare], observed[rare].sum())
        wanted = np.append(expected[~rare], max(expected[rare].sum(), 1e-9))
        return float(((counted - wanted) ** 2 / wanted).sum()), _chi_square_limit(max(1, int((~rare).sum())))

    assert not observed[output.scores[0][0].numpy() == -np.inf].any()
    found, limit = distance(output.scores[0])
    assert found < limit
    if set(settings) != {"top_k"}:  # else they are the same
        found, limit = distance(output.logits[0])
        assert found > limit  # the test would notice unprocessed scores
