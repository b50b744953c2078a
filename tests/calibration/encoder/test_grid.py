"""catp-eval on a bundle with both prunings: every ratio with every schedule, asked here one by one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from bundles import edit_manifest
from typer.testing import CliRunner, Result

from catp.calibration.accuracy.statistics import mean_difference
from catp.calibration.commands.eval import app
from catp.calibration.data import open_data
from catp.calibration.data.metrics import JUDGES
from catp.calibration.encoder.report import EncoderReport
from catp.calibration.significance.holm import holm
from catp.calibration.significance.mcnemar import mcnemar_exact
from catp.runtime import EncoderWish, Pipeline
from catp.runtime.bundle.folder import open_bundle

pytestmark = pytest.mark.heavy  # a bundle that prunes in both places takes half a minute

QUESTIONS, SEED = 14, 5
SHARES = (0.8, 0.5)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def report_of(bundle: Path, output: Path, *arguments: object) -> tuple[EncoderReport, str]:
    result = call(bundle, "--limit", QUESTIONS, "--seed", SEED, "-o", output, *arguments)
    assert result.exit_code == 0, result.output
    return EncoderReport.model_validate(json.loads(output.read_text())), result.stderr


def right(pipeline: Pipeline, share: float, **kept: float | None) -> tuple[np.ndarray, float]:
    """How right each answer is, float64 [Q], and the mean of tokens kept; each question by itself, as catp-run asks."""
    questions = open_data("demo").subset(QUESTIONS, None, SEED)
    judge, found = JUDGES[questions.metric], []
    for question in questions:
        (answer,) = pipeline.generate([question.image], [question.prompt], encoder=EncoderWish(flops=share), **kept)  # type: ignore[arg-type]
        found.append((judge(answer.answer, question.answers), answer.num_kept))
    values, counts = np.array(found, np.float64).T
    return values, float(counts.mean())


def test_every_ratio_is_asked_with_every_schedule(both_bundle: Path, tmp_path: Path) -> None:
    arguments = ("--ratios", "0,0.75", "--keep-mass", 0.4, "--encoder-flops", "0.8,0.5", "--batch-size", 4)
    report, printed = report_of(both_bundle, tmp_path / "eval.json", *arguments)
    pipeline = Pipeline.load(both_bundle)
    spec = pipeline.manifest.encoder_pruning
    assert spec is not None
    amounts: list[dict[str, float | None]] = [{"ratio": 0.0}, {"ratio": 0.75}, {"keep_mass": 0.4}]
    cells = [(share, amount) for share in SHARES for amount in amounts]
    asked = [right(pipeline, share, **amount) for share, amount in cells]
    assert len({values.mean() for values, _ in asked}) > 2 and len(report.scores) == 6
    questions = open_data("demo").subset(QUESTIONS, None, SEED)
    images = [question.image_key for question in questions]

    def paired(place: int, other: int) -> tuple[float, tuple[float, float]]:
        found = mean_difference(asked[place][0], asked[other][0], SEED, clusters=images)
        return found.mean, (found.low, found.high)

    p_of = {}
    for place, other in ((1, 0), (2, 0), (3, 0), (4, 0), (5, 0), (4, 3), (4, 1), (5, 3), (5, 2)):
        difference = asked[place][0] - asked[other][0]
        p_of[place, other] = mcnemar_exact(int((difference > 0).sum()), int((difference < 0).sum()))
    for place, (found, (share, amount), (values, kept)) in enumerate(zip(report.scores, cells, asked)):
        setting = found.setting
        assert (setting.ratio, setting.keep_mass) == (amount.get("ratio"), amount.get("keep_mass"))
        assert setting.kept_tokens == EncoderWish(flops=share).schedule(spec)
        assert found.accuracy == pytest.approx(values.mean()) and found.tokens_kept == pytest.approx(kept)
        assert found.share == pytest.approx(share, abs=0.03)
        assert (found.difference, found.difference_95) == paired(place, 0)
        for pair, other in ((found.same_encoder, place // 3 * 3), (found.same_amount, place % 3)):
            if other == place:
                assert pair is None
            else:
                assert pair is not None and pair.against == report.scores[other].setting
                assert (pair.difference, pair.interval_95) == paired(place, other)
                assert pair.p_value == p_of[place, other]
    # Each question is about another image. Six rows against the first, and within encoders and amounts; the first row
    # of an encoder and the first encoder's are compared with it twice.
    tested = {(place, 0): found.p_corrected or 0 for place, found in enumerate(report.scores) if place}
    for place, found in enumerate(report.scores):
        for pair, other in ((found.same_encoder, place // 3 * 3), (found.same_amount, place % 3)):
            if pair is not None:
                assert pair.p_corrected == tested.setdefault((place, other), pair.p_corrected or 0)
                assert pair.finding == ("difference shown" if (pair.p_corrected or 0) < 0.05 else "no difference shown")
    assert set(tested) == set(p_of) and list(tested.values()) == holm([p_of[pair] for pair in tested])
    assert (report.test, report.comparisons) == ("McNemar's exact test", len(p_of)) and len(p_of) == 9
    assert report.scores[0].finding is None and "for 9 comparisons by Holm" in printed
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines() if "│" in line]
    assert [(row[3], len(row)) for row in rows] == [("ratio 0", 10), ("ratio 0.75", 10), ("mass 0.4", 10)] * 2
    in_all = [float(row[5]) for row in rows]  # less after fewer image tokens, and after fewer query tokens
    assert in_all == [float(f"{found.answer_gflops:.4g}") for found in report.scores]
    assert in_all[1] < in_all[2] < in_all[0] and in_all[3] < in_all[0]
    assert "minus first row" in printed and "minus ratio 0 " in printed and "minus schedule, 0.8 of the work" in printed
    assert (report.method, report.positions) == ("catp", "original")


def test_one_encoder_or_one_ratio_is_a_simpler_table(both_bundle: Path, tmp_path: Path) -> None:
    one, printed = report_of(both_bundle, tmp_path / "one.json", "--ratios", "0,0.9", "--encoder-flops", 0.7)
    assert [found.tokens_kept for found in one.scores] == [32, 3]
    assert "minus first row" in printed and "minus ratio 0" not in printed
    default, printed = report_of(both_bundle, tmp_path / "default.json", "--encoder-flops", "0.8,0.5")
    assert [found.setting.ratio for found in default.scores] == [0.5, 0.5]  # the bundle's own
    assert "minus schedule, 0.8 of the work" in printed and "minus first row" not in printed
    assert all(found.same_encoder is found.same_amount is None for found in (*one.scores, *default.scores))


def test_the_bundles_own_share_of_the_votes_is_kept(both_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(both_bundle, tmp_path / "bundle"))
    vote = open_bundle(bundle).manifest.pruning
    edit_manifest(bundle, pruning=vote.model_copy(update={"keep_mass": 0.3}).model_dump(mode="json"))
    report, _ = report_of(bundle, tmp_path / "eval.json", "--encoder-flops", 0.6)
    (found,) = report.scores
    values, kept = right(Pipeline.load(bundle), 0.6)
    assert (found.setting.ratio, found.setting.keep_mass) == (None, 0.3)
    assert found.tokens_kept == pytest.approx(kept) and 3 < kept < 16
    assert found.accuracy == pytest.approx(values.mean())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "catp,random"], "--methods: not with shares or temperatures of a vision encoder"),
        (["--positions", "both", "--plot", "a.png"], "--positions, --plot: not with shares or temperatures"),
        (["--ratios", "0,1"], "ratio 1.0: a pruning ratio is the fraction removed, 0 <= ratio < 1"),
        (["--keep-mass", "2"], "keep mass 2.0: the share of the votes that is kept"),
        (["--encoder-temperatures", "1"], "--encoder-flops, --encoder-temperatures: an encoder keeps"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else None,
)
def test_bad_input_is_one_clear_line(both_bundle: Path, arguments: list[str], message: str) -> None:
    result = call(both_bundle, "--encoder-flops", "0.7", *arguments)
    (line,) = result.stderr.splitlines()
    assert result.exit_code == 2 and line.startswith("error: ") and message in line


def test_an_encoder_without_a_temperature_has_none_of_its_own(both_bundle: Path, demo_bundle: Path) -> None:
    for bundle, words in ((both_bundle, "keeps as many tokens as its schedule says"), (demo_bundle, "prunes nothing")):
        result = call(bundle, "--encoder-temperatures", "own")
        assert result.exit_code == 2 and words in " ".join(result.stderr.split())
        assert result.stderr.count("error:") == 1


def test_instructblip_is_asked_too(both_instructblip_bundle: Path, tmp_path: Path) -> None:
    """Its votes depend on the question, so that a picture is encoded for each."""
    report, _ = report_of(
        both_instructblip_bundle, tmp_path / "eval.json", "--ratios", "0,0.5", "--encoder-flops", "0.85,0.7"
    )
    assert [found.setting.ratio for found in report.scores] == [0, 0.5, 0, 0.5]


def test_answers_are_generated_as_asked(both_bundle: Path, tmp_path: Path) -> None:
    template, settings = "{question} Short answer:", {"num_beams": 3, "length_penalty": -1.0}
    report, _ = report_of(
        both_bundle, tmp_path / "eval.json", "--ratios", "0,0.75", "--encoder-flops", 0.6, "--num-beams", 3,
        "--length-penalty", -1, "--max-new-tokens", 4, "--prompt-template", template,
    )  # fmt: skip
    assert (report.prompt_template, report.max_new_tokens) == (template, 4)
    assert (report.generation.num_beams, report.generation.length_penalty) == (3, -1)
    pipeline, questions = Pipeline.load(both_bundle), open_data("demo").subset(QUESTIONS, None, SEED)
    for found in report.scores:
        answers = [
            pipeline.generate(
                [q.image], [f"{q.question} Short answer:"], found.setting.ratio, max_new_tokens=4,
                encoder=EncoderWish(flops=0.6), **settings,
            )[0].answer
            for q in questions
        ]  # fmt: skip
        assert found.accuracy == np.mean([answer == q.answers[0] for answer, q in zip(answers, questions)])
    usual, _ = report_of(both_bundle, tmp_path / "usual.json", "--ratios", "0,0.75", "--encoder-flops", 0.6)
    assert [found.accuracy for found in usual.scores] != [found.accuracy for found in report.scores]
    assert usual.prompt_template == "Question: {question} Answer:" and usual.generation.describe() == "greedy"
