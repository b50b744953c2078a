from pathlib import Path

import pytest
from typer.testing import CliRunner

from catp.calibration.accuracy import Score, evaluate
from catp.calibration.commands.eval import app
from catp.export.demo import scenes
from catp.runtime import Pipeline

RUNNER = CliRunner()


def test_wilson_interval_by_hand() -> None:
    # 8 of 10: (0.8 + 1.92/10 ± 1.96 sqrt(0.16/10 + 3.8416/400)) / (1 + 3.8416/10) = 0.490 to 0.943
    low, high = Score(0.5, "original", 16, 8, 10).interval()
    assert (round(low, 3), round(high, 3)) == (0.49, 0.943)
    assert Score(0, "original", 32, 10, 10).interval()[1] == 1.0
    assert Score(0, "original", 32, 0, 10).interval()[0] == 0.0


def test_scores_are_those_of_answering_one_by_one(pipeline: Pipeline) -> None:
    examples = list(scenes.examples(20, seed=5))
    done: list[int] = []
    scores = evaluate(
        pipeline, ((e.image, e.question) for e in examples), [0.0, 0.9], ["original", "compact"], 8, done.append
    )
    assert done == [8, 8, 4]
    assert [(s.ratio, s.positions, s.num_kept) for s in scores] == [
        (0.0, "original", 32), (0.0, "compact", 32), (0.9, "original", 3), (0.9, "compact", 3)
    ]  # fmt: skip
    for score in scores:
        answers = [
            pipeline.generate([e.image], [e.question.prompt], ratio=score.ratio, positions=score.positions)[0].answer
            for e in examples
        ]
        assert score.total == 20
        assert score.right == sum(a == e.question.answer for a, e in zip(answers, examples))
    assert scores[0].right > scores[2].right  # three tokens can't describe a scene


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ratios", "0,one"], "separated by commas"),
        (["--ratios", "0.5,1"], "0 <= ratio < 1"),
        (["--data", "x"], "demo"),
    ],
)
def test_bad_input_exits_2(demo_bundle: Path, arguments: list[str], message: str) -> None:
    result = RUNNER.invoke(app, [str(demo_bundle), *arguments])
    assert result.exit_code == 2 and message in result.stderr
