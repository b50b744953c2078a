"""The chain of engines against Hugging Face: the same tokens, alone and in ragged batches, at every ratio."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from catp.export.checkpoints.loading import Checkpoint
from catp.export.demo import samples, scenes
from catp.export.verification.reference import Reference
from catp.runtime import Pipeline, UsageError
from catp.runtime.bundle.manifest import Positions
from catp.runtime.pruning import num_kept

QUESTIONS = 200
NEW_TOKENS = 8
BATCH = 8


@dataclass(frozen=True)
class HuggingFace:
    """The checkpoint's own view of the held-out questions."""

    reference: Reference
    examples: list[scenes.Example]
    prompt_ids: list[list[int]]
    pixel_values: torch.Tensor  # float32 [200, 3, H, W]
    query_embeds: torch.Tensor  # float32 [200, 32, Dl], all of them


@pytest.fixture(scope="module")
def hugging_face(demo_checkpoint: Checkpoint) -> HuggingFace:
    reference = Reference(demo_checkpoint)
    examples = list(scenes.examples(QUESTIONS, seed=99))
    pixel_values = reference.pixel_values([e.image for e in examples])
    query_embeds, _ = reference.query_embeds(reference.image_embeds(pixel_values).embeds)
    prompt_ids = [reference.tokenize(e.question.prompt) for e in examples]
    return HuggingFace(reference, examples, prompt_ids, pixel_values, query_embeds)


def answers(pipeline: Pipeline, examples: list[scenes.Example], batch: int, **options: object) -> list:
    result = []
    for start in range(0, len(examples), batch):
        part = examples[start : start + batch]
        images, prompts = [e.image for e in part], [e.question.prompt for e in part]
        result += pipeline.generate(images, prompts, max_new_tokens=NEW_TOKENS, **options)  # type: ignore[arg-type]
    return result


@pytest.fixture(scope="module")
def generated(hugging_face: HuggingFace) -> list[list[int]]:
    """Hugging Face generate() on each question alone."""
    hf = hugging_face
    return [
        hf.reference.generate(hf.pixel_values[i : i + 1], ids, NEW_TOKENS).token_ids
        for i, ids in enumerate(hf.prompt_ids)
    ]


@pytest.mark.parametrize("batch", [1, BATCH])
def test_unpruned_tokens_are_those_of_generate(
    pipeline: Pipeline, hugging_face: HuggingFace, generated: list[list[int]], batch: int
) -> None:
    lengths = {len(ids) for ids in hugging_face.prompt_ids}
    assert len(lengths) > 1  # ragged
    actual = answers(pipeline, hugging_face.examples, batch, ratio=0)
    assert [a.token_ids for a in actual] == generated
    assert all(a.kept_indices == list(range(32)) for a in actual)


@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_pruned_tokens_are_those_of_hugging_face_given_the_same_kept_tokens(
    pipeline: Pipeline, hugging_face: HuggingFace, ratio: float, positions: Positions
) -> None:
    hf, kept = hugging_face, num_kept(ratio, 32)
    actual = answers(pipeline, hf.examples, BATCH, ratio=ratio, positions=positions)
    for row, answer in enumerate(actual):
        assert len(answer.kept_indices) == answer.num_kept == kept
        assert answer.kept_indices == sorted(set(answer.kept_indices))
        expected = hf.reference.continue_greedily(
            hf.query_embeds[row], answer.kept_indices, positions, hf.prompt_ids[row], NEW_TOKENS
        )
        assert answer.token_ids == expected.token_ids


def test_single_calls_equal_batches_when_pruned(pipeline: Pipeline, hugging_face: HuggingFace) -> None:
    examples = hugging_face.examples[:24]
    alone = answers(pipeline, examples, 1)
    together = answers(pipeline, examples, BATCH)
    assert [(a.token_ids, a.kept_indices) for a in alone] == [(a.token_ids, a.kept_indices) for a in together]


def test_a_smaller_cache_after_a_larger_one_changes_nothing(pipeline: Pipeline) -> None:
    sample = samples()[0]
    first = pipeline.generate([sample.image], [sample.prompt], max_new_tokens=4)[0]
    pipeline.generate([sample.image] * 3, [sample.prompt] * 3, max_new_tokens=100)
    again = pipeline.generate([sample.image], [sample.prompt], max_new_tokens=4)[0]
    assert first.token_ids == again.token_ids


def test_generation_stops_at_max_new_tokens_and_reports_timings(pipeline: Pipeline) -> None:
    sample = samples()[0]
    answer = pipeline.generate([sample.image], [sample.prompt], max_new_tokens=1)[0]
    assert len(answer.token_ids) == 1
    times = answer.timings_ms
    assert times.decode_per_token == 0 < times.prefill <= times.total


def test_generation_stops_where_positions_end(odd_bundle: Path) -> None:
    """96 positions, 24 of them the image's: the last token fed back takes the last position."""
    pipeline = Pipeline.load(odd_bundle)
    sample = samples()[0]
    for prompt in ("?", "where is it? " * 3):
        used = 24 + len(pipeline.tokenize(prompt))
        longest = pipeline.generate([sample.image], [prompt], max_new_tokens=10_000)[0]
        ended = longest.token_ids[-1] in pipeline.manifest.text.eos_token_ids
        assert ended or len(longest.token_ids) == 96 - used + 1


def test_a_row_that_fills_the_model_does_not_disturb_its_batch(pipeline: Pipeline) -> None:
    """OPT's positions are a table: one step too far is out of bounds."""
    sample = samples()[0]
    full = "?" * 2000
    while len(pipeline.tokenize(full)) > 256 - 32:
        full = full[:-1]
    assert len(pipeline.tokenize(full)) == 256 - 32
    alone = [pipeline.generate([sample.image], [prompt])[0].token_ids for prompt in (full, sample.prompt)]
    together = pipeline.generate([sample.image] * 2, [full, sample.prompt])
    assert [answer.token_ids for answer in together] == alone
    assert len(alone[0]) == 1


def test_a_prompt_that_does_not_fit_is_a_clear_error(pipeline: Pipeline) -> None:
    with pytest.raises(UsageError, match="256 positions, so give at most 224 tokens"):
        pipeline.generate([samples()[0].image], ["word " * 300])


def test_an_empty_prompt_asks_for_a_caption(pipeline: Pipeline, hugging_face: HuggingFace) -> None:
    actual = pipeline.generate([hugging_face.examples[0].image], [""], ratio=0, max_new_tokens=NEW_TOKENS)[0]
    begin = hugging_face.reference.tokenize("")
    expected = hugging_face.reference.generate(hugging_face.pixel_values[:1], begin, NEW_TOKENS)
    assert actual.token_ids == expected.token_ids


def test_arguments_that_do_not_fit(pipeline: Pipeline) -> None:
    image = samples()[0].image
    with pytest.raises(UsageError, match="one prompt per image"):
        pipeline.generate([image], [])
    with pytest.raises(UsageError, match="0 <= ratio < 1"):
        pipeline.generate([image], ["x"], ratio=1)
    with pytest.raises(UsageError, match="at least 1"):
        pipeline.generate([image], ["x"], max_new_tokens=0)
    with pytest.raises(UsageError, match="accepted: original, compact"):
        pipeline.generate([image], ["x"], positions="sideways")  # type: ignore[arg-type]


def test_several_questions_about_one_image_encode_it_once(
    pipeline: Pipeline, hugging_face: HuggingFace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given as one object or one path; also where images keep differently many tokens."""
    first, second = samples()[0].image, hugging_face.examples[1].image
    prompts = [e.question.prompt for e in hugging_face.examples[:5]]
    images = [first, second, first, str(first), second]
    alone = [
        [pipeline.generate([i], [p], **how)[0] for i, p in zip(images, prompts)]
        for how in ({"ratio": 0.5, "num_beams": 2}, {"keep_mass": 0.7})
    ]
    encoded = []
    encode = pipeline.encode
    monkeypatch.setattr(pipeline, "encode", lambda pixels, *more: encoded.append(len(pixels)) or encode(pixels, *more))
    together = [
        pipeline.generate(images, prompts, ratio=0.5, num_beams=2),
        pipeline.generate(images, prompts, keep_mass=0.7),
    ]
    for wanted, found in zip(alone, together):
        assert [(a.token_ids, a.kept_indices) for a in found] == [(a.token_ids, a.kept_indices) for a in wanted]
    asked = pipeline.ask(first, prompts, ratio=0.5, num_beams=2)
    assert [asked[row].token_ids for row in (0, 2, 3)] == [alone[0][row].token_ids for row in (0, 2, 3)]
    assert encoded == [2, 2, 1]


def test_a_missing_provider_names_the_extra(demo_bundle: Path) -> None:
    with pytest.raises(UsageError, match=r"\.\[gpu\]"):
        Pipeline.load(demo_bundle, provider="cuda")
    with pytest.raises(UsageError, match="accepted: cpu, openvino, auto, cuda"):
        Pipeline.load(demo_bundle, provider="abacus")
