"""Answers that share their steps are those of `Pipeline.generate`, whoever comes and goes beside them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from catp.calibration.commands.calibrate import app as calibrate
from catp.export.demo import scenes
from catp.runtime import GraphError, Pipeline, UsageError
from catp.runtime.bundle.folder import Bundle
from catp.runtime.bundle.manifest import Quantization
from catp.runtime.generation.request import Request
from catp.runtime.generation.together import Running, Together
from catp.runtime.image_sides.query_tokens import Remembered
from catp.runtime.language_models.separate import Separate
from catp.runtime.language_models.slots import Slots
from catp.runtime.providers import open_provider
from catp.runtime.questions import Question, Wishes

EXAMPLES = list(scenes.examples(6, seed=11))
LENGTH = 96
SETTINGS: list[dict[str, Any]] = [
    {},
    {},
    {"do_sample": True, "temperature": 1.5, "seed": 3},
    {"do_sample": True, "top_k": 0, "top_p": 0.9, "temperature": 3.0, "seed": 8},
    {"repetition_penalty": 1.4},
    {"min_new_tokens": 9},
    {"stop_strings": ("la", "w c")},
    {"no_repeat_ngram_size": 1, "min_new_tokens": 5},
]
PRUNING: list[dict[str, Any]] = [{"ratio": 0.0}, {"ratio": 0.5}, {"ratio": 0.9}, {"keep_mass": 0.4}, {}]


@dataclass
class Asked:
    """One request of a schedule, and how long it stays."""

    request: Request
    wanted: list[int]
    cancelled_after: int | None


def requests(pipeline: Pipeline, count: int, seed: int) -> Iterator[Asked]:
    rng = np.random.default_rng(seed)
    known: dict[str, list[int]] = {}
    for _ in range(count):
        example = EXAMPLES[rng.integers(len(EXAMPLES))]
        pruning = PRUNING[rng.integers(len(PRUNING))]
        settings = SETTINGS[rng.integers(len(SETTINGS))]
        positions = (None, "compact")[rng.integers(2)]
        tokens = int(rng.integers(1, 16))
        prompt = example.question.prompt * int(rng.integers(1, 3))
        chosen = pipeline.manifest.generation.asked_for(**settings)
        wishes = Wishes(chosen, pruning.get("ratio"), pruning.get("keep_mass"), positions, tokens)
        question = Question(example.image, prompt, wishes)
        key = repr((id(example), prompt, wishes))
        if key not in known:
            known[key] = pipeline.answer([question])[0].token_ids
        ids, _ = pipeline.check(question)
        seen = pipeline.remember(pipeline.encode(pipeline.preprocess([example.image]), [prompt]))
        request = pipeline.request(pipeline.keep(seen, wishes), [ids], tokens, positions, chosen)
        yield Asked(request, known[key], int(rng.integers(0, 6)) if rng.random() < 0.2 else None)


def run_schedule(pipeline: Pipeline, rows: int, count: int, seed: int) -> Together:
    """Requests come at random moments, some leave early; every answer is compared, also the part of those that left."""
    rng = np.random.default_rng(seed)
    together = Together(pipeline.open_seats(rows, LENGTH))
    waiting = list(requests(pipeline, count, seed))
    under_way: dict[Running, Asked] = {}
    compared = 0
    while waiting or under_way:
        while waiting and not together.full and rng.random() < 0.6:
            asked = waiting.pop()
            under_way[together.join(asked.request)] = asked
        together.step()
        for running, asked in list(under_way.items()):
            assert running.error is None
            done = len(running.row.token_ids)
            if running.row.running and asked.cancelled_after is not None and done > asked.cancelled_after:
                together.leave(running)
            assert running.row.token_ids == asked.wanted[:done]
            if not running.row.running:
                compared += len(running.row.token_ids) == len(asked.wanted)
                del under_way[running]
    assert compared > 0.6 * count and not together.running
    return together


@pytest.mark.parametrize("rows", [1, 5, 8])
def test_tokens_are_those_of_each_request_alone(pipeline: Pipeline, rows: int) -> None:
    together = run_schedule(pipeline, rows, 24, seed=rows)
    assert isinstance(together.seats, Slots)


@pytest.mark.heavy
def test_five_hundred_requests(pipeline: Pipeline) -> None:
    run_schedule(pipeline, 8, 500, seed=0)


def test_long_answers_of_a_random_llama(odd_bundle: Path) -> None:
    run_schedule(Pipeline.load(odd_bundle), 4, 16, seed=1)


def test_an_encoder_decoder_s_rows_are_separate(t5_bundle: Path) -> None:
    together = run_schedule(Pipeline.load(t5_bundle), 3, 12, seed=2)
    assert isinstance(together.seats, Separate)


def test_votes_that_read_the_prompt(instructblip_bundle: Path) -> None:
    run_schedule(Pipeline.load(instructblip_bundle), 3, 8, seed=3)


def test_dynamic_ranges_are_computed_for_each_request_alone(pipeline: Pipeline) -> None:
    """The demo, taken for a bundle with such graphs: the Q-Former is run for each ratio, and no row shares a step."""
    manifest = pipeline.manifest
    dynamic = Quantization(format="int8", purpose="cpu", activations="dynamic", layers=1, bytes_before=1, bytes_after=1)
    graphs = {name: graph.model_copy(update={"quantization": dynamic}) for name, graph in manifest.graphs.items()}
    bundle = Bundle(pipeline.bundle.path, manifest.model_copy(update={"graphs": graphs}))
    taken = Pipeline(bundle, open_provider("cpu"))
    together = run_schedule(taken, 3, 8, seed=5)
    assert isinstance(together.seats, Separate)
    seen = taken.remember(taken.encode(taken.preprocess([EXAMPLES[0].image])))
    assert isinstance(seen, Remembered) and set(seen.encoded) == {"image_embeds"}
    assert seen.nbytes == seen.encoded["image_embeds"].nbytes


@pytest.mark.heavy
@pytest.mark.parametrize(("decode", "kind"), [([], Separate), (["--decode", "int4"], Slots)], ids=["int8", "int4"])
def test_quantised_bundles(demo_bundle: Path, tmp_path: Path, decode: list[str], kind: type) -> None:
    options = ["--to", "int8", *decode, "--for", "cpu", "--questions", "20", "-o", str(tmp_path / "quantised")]
    result = CliRunner().invoke(calibrate, ["precision", str(demo_bundle), *options])
    assert result.exit_code == 0, result.output
    together = run_schedule(Pipeline.load(tmp_path / "quantised"), 8, 80, seed=6)
    assert isinstance(together.seats, kind)


def test_a_schedule_would_notice_a_row_at_another_place(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison can fail: rows that are not told where they write answer something else."""
    step = Slots.step

    def astray(self: Slots, tokens: Any) -> None:
        self._written += 1
        step(self, tokens)

    monkeypatch.setattr(Slots, "step", astray)
    with pytest.raises(AssertionError):
        run_schedule(pipeline, 4, 24, seed=4)


def ask(pipeline: Pipeline, tokens: int = 8, **settings: Any) -> Request:
    asked = EXAMPLES[0]
    chosen = pipeline.manifest.generation.asked_for(**settings)
    wishes = Wishes(chosen, 0.5, None, None, tokens)
    seen = pipeline.remember(pipeline.encode(pipeline.preprocess([asked.image])))
    ids = pipeline.tokenize(asked.question.prompt)
    return pipeline.request(pipeline.keep(seen, wishes), [ids], tokens, None, chosen)


def test_a_step_has_as_many_rows_as_it_needs(pipeline: Pipeline) -> None:
    slots = pipeline.open_seats(6, LENGTH)
    assert isinstance(slots, Slots) and slots.buckets == [1, 2, 4, 6]
    together = Together(slots)
    running = [together.join(ask(pipeline, min_new_tokens=8)) for _ in range(3)]
    together.step()
    assert list(slots._steps) == [4]
    together.leave(running[0])
    together.leave(running[2])
    together.step()
    assert list(slots._steps) == [4, 2]
    assert together.join(ask(pipeline, min_new_tokens=8)).seat.row == 0


def test_a_freed_row_is_zero(pipeline: Pipeline) -> None:
    slots = pipeline.open_seats(2, LENGTH)
    assert isinstance(slots, Slots)
    together = Together(slots)
    first = together.join(ask(pipeline, min_new_tokens=8))
    together.step()
    caches = [buffer.numpy() for buffer in slots._cache.inputs.values()]
    assert all(cache[0].any() and not cache[1].any() for cache in caches)
    together.leave(first)
    assert not any(cache.any() for cache in caches)


def test_a_poisoned_row_ends_alone_and_leaves_nothing(pipeline: Pipeline) -> None:
    slots = pipeline.open_seats(2, LENGTH)
    assert isinstance(slots, Slots)
    together = Together(slots)
    wanted = pipeline.ask(EXAMPLES[0].image, [EXAMPLES[0].question.prompt], ratio=0.5, max_new_tokens=8)[0].token_ids
    poisoned, healthy = together.join(ask(pipeline, min_new_tokens=8)), together.join(ask(pipeline))
    for buffer in slots._cache.inputs.values():
        buffer.numpy()[0, :, :4] = np.nan
    while together.running:
        together.step()
    assert isinstance(poisoned.error, GraphError) and "decode step 1" in str(poisoned.error)
    assert healthy.error is None and healthy.row.token_ids == wanted
    again = together.join(ask(pipeline))
    while together.running:
        together.step()
    assert again.seat.row == 0 and again.row.token_ids == wanted


def test_scores_that_are_none_end_a_prompt_before_it_joins(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    together = Together(pipeline.open_seats(1, LENGTH))
    with monkeypatch.context() as patched:
        patched.setattr(together.seats, "logits", lambda seat: np.full(together.seats.vocabulary, np.nan))
        for settings in ({}, {"repetition_penalty": 1.2}):
            with pytest.raises(GraphError, match=r"reading the prompts: its scores .* not finite"):
                together.join(ask(pipeline, **settings))
            assert not together.running
    assert together.join(ask(pipeline)).seat.row == 0


def test_a_failing_step_ends_all_and_the_next_one_is_served(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = Together(pipeline.open_seats(2, LENGTH))
    lost = [together.join(ask(pipeline, min_new_tokens=8)) for _ in range(2)]

    def fails(tokens: object) -> None:
        raise GraphError("language_model", "no memory")

    with monkeypatch.context() as patched:
        patched.setattr(together.seats, "step", fails)
        assert together.step() == lost and not together.running
    assert all(isinstance(running.error, GraphError) for running in lost)
    assert together.join(ask(pipeline)).seat.row == 0


def test_what_does_not_fit_is_refused_and_takes_no_seat(pipeline: Pipeline) -> None:
    together = Together(pipeline.open_seats(1, 32))
    with pytest.raises(UsageError, match=r"16 image tokens, .* of the prompt and 30 new ones: at most 33 together"):
        together.join(ask(pipeline, 30))
    with pytest.raises(UsageError, match="num_beams 2"):
        together.join(ask(pipeline, num_beams=2))
    assert not together.full


def test_an_answer_of_one_token_takes_no_seat(pipeline: Pipeline) -> None:
    together = Together(pipeline.open_seats(1, LENGTH))
    running = together.join(ask(pipeline, 1))
    assert len(running.row.token_ids) == 1 and not running.row.running and not together.full
