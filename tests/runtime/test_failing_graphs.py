"""Graphs that load and then fail, or give what is no answer: one error that names the graph and the stage."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from bundles import relist
from onnx import helper, numpy_helper

from catp.export.demo import samples
from catp.runtime import GraphError, Pipeline
from catp.runtime.bundle.folder import open_bundle

SAMPLE = samples()[0]
Change = Callable[[onnx.ModelProto], None]


@pytest.fixture
def tampered(demo_bundle: Path, tmp_path: Path) -> Callable[[str, Change], Pipeline]:
    """The demo with a graph changed, its manifest's hashes right."""

    def make(graph: str, change: Change) -> Pipeline:
        copy = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
        model = onnx.load(copy / f"{graph}.onnx")
        change(model)
        # In place: what is saved again is appended to.
        (copy / f"{graph}.onnx_data").unlink()
        onnx.save(model, copy / f"{graph}.onnx", save_as_external_data=True, location=f"{graph}.onnx_data")
        relist(copy)
        return Pipeline.load(copy)

    return make


def ask(pipeline: Pipeline, **settings: object) -> list[int]:
    return pipeline.generate([SAMPLE.image], [SAMPLE.prompt], ratio=0, **settings)[0].token_ids  # type: ignore[arg-type]


def weight(model: onnx.ModelProto, shape: tuple[int, ...]) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tuple(tensor.dims) == shape)


def not_a_number_from(position: int) -> Change:
    """Positions have embeddings: from this one on they are NaN. OPT's table begins with two that nothing has."""

    def change(model: onnx.ModelProto) -> None:
        table = weight(model, (258, 128))
        values = numpy_helper.to_array(table).copy()
        values[position + 2 :] = np.nan
        table.CopyFrom(numpy_helper.from_array(values, table.name))

    return change


STRATEGIES: list[dict[str, object]] = [
    {},
    {"do_sample": True, "seed": 1},
    {"num_beams": 2},
    {"repetition_penalty": 1.1},
]


@pytest.mark.parametrize("settings", STRATEGIES, ids=str)
def test_scores_that_are_no_numbers_are_an_error_never_an_answer(
    tampered: Callable[[str, Change], Pipeline], settings: dict[str, object]
) -> None:
    pipeline = tampered("language_model", not_a_number_from(0))
    with pytest.raises(GraphError, match=r"^language_model, reading the prompts: its scores .* not finite"):
        ask(pipeline, **settings)
    with pytest.raises(GraphError, match="not finite"):
        list(pipeline.stream(SAMPLE.image, SAMPLE.prompt, ratio=0, **({} if "num_beams" in settings else settings)))  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", STRATEGIES, ids=str)
def test_scores_that_become_no_numbers_later_are_an_error_too(
    tampered: Callable[[str, Change], Pipeline], pipeline: Pipeline, settings: dict[str, object]
) -> None:
    answer = ask(pipeline)
    assert len(answer) >= 3
    first = 32 + len(pipeline.tokenize(SAMPLE.prompt))  # the position of the first token fed back
    late = tampered("language_model", not_a_number_from(first + 1))
    with pytest.raises(GraphError, match=r"^language_model, decode step 2: its scores"):
        ask(late, **settings, min_new_tokens=3)
    assert ask(late, max_new_tokens=2) == answer[:2]  # what comes before is an answer


def test_an_infinite_score_is_no_answer(tampered: Callable[[str, Change], Pipeline]) -> None:
    def change(model: onnx.ModelProto) -> None:
        table = weight(model, (258, 128))
        values = numpy_helper.to_array(table).copy()
        values[:] = np.inf
        table.CopyFrom(numpy_helper.from_array(values, table.name))

    with pytest.raises(GraphError, match="not finite"):
        ask(tampered("language_model", change))


def test_a_graph_that_fails_at_run_time_is_named(
    tampered: Callable[[str, Change], Pipeline], capfd: pytest.CaptureFixture[str]
) -> None:
    """By an Expand to more memory than there is, which no look at the graph tells."""

    def change(model: onnx.ModelProto) -> None:
        output = model.graph.node[-1].output[0]
        model.graph.node[-1].output[0] = "before"
        for name, value in {"times": np.array([1 << 45], np.int64), "one": np.ones(1, np.float32)}.items():
            model.graph.initializer.append(numpy_helper.from_array(value, name))
        for operator, inputs, result, attributes in (
            ("Shape", ["pixel_values"], "rows", {"start": 0, "end": 1}),
            ("Mul", ["rows", "times"], "size", {}),
            ("Expand", ["one", "size"], "many", {}),
            ("ReduceMax", ["many"], "most", {}),
            ("Add", ["before", "most"], output, {}),
        ):
            model.graph.node.append(helper.make_node(operator, inputs, [result], **attributes))

    pipeline = tampered("vision_encoder", change)
    with pytest.raises(GraphError, match=r"^vision_encoder: ONNX Runtime can't run it") as caught:
        ask(pipeline)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""  # ONNX Runtime's red lines say the same
    with pytest.raises(GraphError):
        ask(Pipeline.load(pipeline.bundle.path, verbose=True))
    assert "Expand" in capfd.readouterr().err


def test_tokens_that_are_none_are_an_error(tampered: Callable[[str, Change], Pipeline]) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.array(384, np.int64), "more"))
        chosen = next(node for node in model.graph.node if "next_token" in node.output)
        chosen.output[list(chosen.output).index("next_token")] = "chosen"
        model.graph.node.append(helper.make_node("Add", ["chosen", "more"], ["next_token"]))

    with pytest.raises(
        GraphError, match=r"language_model, reading the prompts: its next token is \d+, of a vocabulary"
    ):
        ask(tampered("language_model", change))


def test_kept_tokens_that_are_none_are_an_error(tampered: Callable[[str, Change], Pipeline]) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.array(1 << 40, np.int64), "more"))
        chosen = next(node for node in model.graph.node if "kept_indices" in node.output)
        chosen.output[0] = "chosen"
        for node in model.graph.node:
            for place, name in enumerate(node.input):
                if name == "kept_indices":
                    node.input[place] = "chosen"
        model.graph.node.append(helper.make_node("Add", ["chosen", "more"], ["kept_indices"]))

    with pytest.raises(GraphError, match="qformer_voting: it keeps not 32 of 32"):
        ask(tampered("qformer_voting", change))


def test_a_tokenizer_of_another_model_is_an_error(demo_bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    path = copy / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    word = next(iter(key for key in vocabulary if key in ("Q", "W", "w", "h")))
    vocabulary[word] = 50_000
    path.write_text(json.dumps(tokenizer))
    relist(copy)
    pipeline = Pipeline(open_bundle(copy), Pipeline.load(demo_bundle).provider)
    with pytest.raises(Exception, match="makes token 50000 of the prompt, and the language model knows 384"):
        pipeline.generate([SAMPLE.image], ["QWwh"])
