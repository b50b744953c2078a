"""A checkpoint with one query token, of which nothing can be pruned: it exports, runs, and becomes engines."""

from pathlib import Path

import checkpoints
import onnx
import pytest
from typer.testing import CliRunner

from catp.export.commands.build import app as build_app
from catp.export.commands.export import app
from catp.export.demo import samples
from catp.runtime import Pipeline

RUNNER = CliRunner()


@pytest.mark.heavy  # exports and plans that are those of many tokens otherwise
@pytest.mark.parametrize("heads", [1, 6])
def test_one_query_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heads: int) -> None:
    monkeypatch.setattr(checkpoints, "QUERIES", 1)
    monkeypatch.setitem(checkpoints.QFORMER, "num_attention_heads", heads)
    model, bundle = checkpoints.save_odd_checkpoint(tmp_path / "one"), tmp_path / "bundle"
    result = RUNNER.invoke(app, ["--model", str(model), "-o", str(bundle)])
    assert result.exit_code == 0, result.output
    # A lone query attends to the image, and reads its own value where it would attend to itself.
    graph = onnx.load(bundle / "qformer_voting.onnx", load_external_data=False).graph
    assert [node.op_type for node in graph.node].count("Attention") == 0
    sample = samples()[0]
    (answer,) = Pipeline.load(bundle).generate([sample.image], [sample.prompt])
    assert answer.kept_indices == [0] and answer.token_ids
    pytest.importorskip("tensorrt_rtx")
    result = RUNNER.invoke(build_app, [str(bundle), "--target", "tensorrt-rtx", "--compute-capability", "8.6"])
    assert result.exit_code == 0, result.output
