"""Questions asked at several encoder schedules and ratios at once: the answers that the pipeline gives one by one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from catp.calibration.benchmark.costs.geometry import read_geometry
from catp.calibration.benchmark.costs.whole import answer_gflops
from catp.calibration.data import open_data
from catp.calibration.data.dataset import VqaExample
from catp.calibration.encoder.answering import Amount, Asked, Prompt, Work, answer_all, check_encoder
from catp.export.demo import samples
from catp.export.exporter import export_bundle
from catp.export.image_encoders.plan import EncoderOptions
from catp.runtime import EncoderWish, Pipeline, UsageError
from catp.runtime.bundle.folder import Bundle, open_bundle

MORE, LESS = EncoderWish(flops=0.85), EncoderWish(flops=0.6)
PICTURES = [sample.image for sample in samples()[:2]]
QUESTIONS = ["what is in the bottom right?", "what color is the circle?", "a", "how many shapes are there?"]


@pytest.mark.heavy
def test_several_ratios_of_one_encoding_answer_as_each_alone(twice_pruned_bundle: Path) -> None:
    pipeline = Pipeline.load(twice_pruned_bundle)
    questions = list(open_data("demo").subset(10, None, 3))
    settings = [Asked(pipeline, wish, ratio) for wish in (MORE, LESS) for ratio in (0.0, 0.5, None)]
    settings[1], settings[4] = settings[4], settings[1]  # those of one encoder need not stand together
    found = answer_all(questions, settings, "exact match", 4)
    for place, asked in enumerate(settings):
        given = pipeline.generate(
            [question.image for question in questions], [question.prompt for question in questions], asked.ratio,
            encoder=asked.wish, num_beams=1,
        )  # fmt: skip
        right = [answer.answer == question.answers[0] for answer, question in zip(given, questions)]
        assert found.right[:, place].tolist() == right
        spec = pipeline.manifest.encoder_pruning
        assert spec is not None
        assert found.gflops[place] == pytest.approx(spec.gflops(asked.wish.schedule(spec)))
    assert 0 < found.right.mean() < 1
    assert found.prompt_tokens == np.mean([len(pipeline.tokenize(question.prompt)) for question in questions])
    both = found.beside(answer_all(questions, settings[:2], "exact match", 4))
    assert (both.right[:, 6:] == found.right[:, :2]).all() and len(both.gflops) == 8


def test_a_share_of_the_votes_is_kept_where_the_bundle_says_so(demo_bundle: Path) -> None:
    pipeline = Pipeline.load(demo_bundle)
    vote = pipeline.manifest.pruning.model_copy(update={"keep_mass": 0.3})
    pipeline.bundle = Bundle(pipeline.bundle.path, pipeline.manifest.model_copy(update={"vote": vote}))
    questions = list(open_data("demo").subset(6, None, 3))
    found = answer_all(questions, [Asked(pipeline, EncoderWish())], "exact match", 4)
    images, prompts = [question.image for question in questions], [question.prompt for question in questions]
    given = pipeline.generate(images, prompts, keep_mass=0.3)
    assert found.right[:, 0].tolist() == [a.answer == question.answers[0] for a, question in zip(given, questions)]


@pytest.mark.heavy
@pytest.mark.parametrize("checkpoint", ["instructblip_checkpoint", "t5_checkpoint"])
def test_every_kind_of_language_model_answers(checkpoint: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Also where votes depend on the question: there a picture is encoded once for each."""
    bundle = tmp_path / "bundle"
    source = request.getfixturevalue(checkpoint)
    export_bundle(str(source), bundle, ratio=0.3, encoder=EncoderOptions(rule="cls", flops=0.8))
    pipeline = Pipeline.load(bundle)
    check_encoder(pipeline, "catp-calibrate schedule")
    spec = pipeline.manifest.encoder_pruning
    assert spec is not None
    wish = EncoderWish(kept_tokens=tuple((least + most) // 2 for least, most in zip(*spec.bounds())))
    about = [0, 1, 0, 1]
    pixels = pipeline.preprocess(PICTURES)
    prompts = [Prompt(image, text, pipeline.tokenize(text)) for image, text in zip(about, QUESTIONS)]
    work = Work(pipeline, wish, [Amount(0.0), Amount(0.6)])
    for ratio, answers in zip((0.0, 0.6), work.answer(pixels, prompts, 3)):
        given = [
            pipeline.generate([PICTURES[image]], [text], ratio, encoder=wish, num_beams=1)[0].answer
            for image, text in zip(about, QUESTIONS)
        ]
        assert answers == given and len(set(given)) > 1
    assert work.gflops == pytest.approx(spec.gflops(wish.schedule(spec)))


@pytest.mark.heavy
def test_a_prompt_that_the_q_former_can_not_read_is_skipped(instructblip_bundle: Path) -> None:
    pipeline = Pipeline.load(instructblip_bundle)
    limit = pipeline.manifest.text.max_instruction
    assert limit is not None
    short, long = (
        VqaExample(text, PICTURES[0], text, ("x",), "other", image_key="scene") for text in ("a", "what " * 2 * limit)
    )
    found = answer_all([short, long], [Asked(pipeline, EncoderWish())], "exact match", 4)
    assert len(found.right) == 1 and found.skipped == 1


def test_what_answers_no_questions_about_images(retrieval_bundle: Path, twice_pruned_bundle: Path) -> None:
    pipeline = Pipeline.load(retrieval_bundle)
    with pytest.raises(UsageError, match="prunes nothing"):
        check_encoder(pipeline, "catp-calibrate schedule")
    pruning = open_bundle(twice_pruned_bundle).manifest.encoder_pruning
    pipeline.bundle = Bundle(pipeline.bundle.path, pipeline.manifest.model_copy(update={"encoder_pruning": pruning}))
    with pytest.raises(UsageError, match="which generates no text"):
        check_encoder(pipeline, "catp-calibrate schedule")


def test_the_work_of_an_answer(twice_pruned_bundle: Path) -> None:
    bundle = open_bundle(twice_pruned_bundle)
    manifest, geometry = bundle.manifest, read_geometry(bundle)
    spec = manifest.encoder_pruning
    assert spec is not None
    kept = LESS.schedule(spec)

    def work(kept_tokens: tuple[int, ...] | None, ratio: float, prompt: int = 10) -> float:
        return answer_gflops(manifest, geometry, kept_tokens, ratio, prompt)

    # The encoder's, and of the Q-Former keys, values and attention of the tokens that it no longer gets.
    gone = 36 - kept[-1]
    qformer = 2 * (2 * (2 * gone * 128 * 128) + 2 * (2 * 32 * gone * 128)) / 1e9
    assert work(None, 0) - work(kept, 0) == pytest.approx(spec.gflops_dense - spec.gflops(kept) + qformer)
    assert work(kept, 0) > work(kept, 0.25) > work(kept, 0.5)
    assert work(kept, 0.5, 20) > work(kept, 0.5, 10)
    # 16 query tokens fewer are 16 prompt tokens fewer, but for their projection in the Q-Former.
    projection = 2 * 16 * 128 * 128 / 1e9
    assert work(kept, 0, 10) - work(kept, 0.5, 26) == pytest.approx(projection)
