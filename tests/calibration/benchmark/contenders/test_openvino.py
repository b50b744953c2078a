"""OpenVINO as a contender: the same weights give the same tokens, with its own cache."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from catp.calibration.benchmark.contenders.subject import Case
from catp.calibration.benchmark.results.report import BenchmarkReport
from catp.calibration.commands.bench import app

pytest.importorskip("openvino", reason="an extra of its own: pip install '.[nncf]'")
pytest.importorskip("nncf", reason="an extra of its own: pip install '.[nncf]'")


@pytest.mark.heavy  # converts the model anew
def test_its_tokens_are_those_of_the_checkpoint(demo_bundle: Path) -> None:
    arguments = ["--against", "transformers,openvino,openvino-int8", "--ratios", "0", "--batch", "1,3"]
    arguments += ["--iterations", "2", "--warmup", "1", "--new-tokens", "12", "--json"]
    result = CliRunner().invoke(app, [str(demo_bundle), *arguments])
    assert result.exit_code == 0, result.output
    report = BenchmarkReport.model_validate_json(result.stdout)
    for batch in (1, 3):
        theirs = report.result(Case(batch, "transformers", 0.0))
        for name in ("openvino", "openvino-int8"):
            found = report.result(Case(batch, name, 0.0))
            assert [len(row) for row in found.token_ids] == [12] * batch and found.repeatable
            assert all(min(found.samples_ms[stage]) > 0 for stage in ("vision", "qformer", "prefill", "decode"))
        # Twelve decode steps over a cache that was reset from round to round, in float32.
        assert report.result(Case(batch, "openvino", 0.0)).token_ids == theirs.token_ids
    # INT8 is another computation: its first token is still the trained model's.
    first = [row[0] for row in report.result(Case(3, "openvino-int8", 0.0)).token_ids]
    assert first == [row[0] for row in report.result(Case(3, "transformers", 0.0)).token_ids]
