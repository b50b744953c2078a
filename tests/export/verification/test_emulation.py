"""What is emulated is half precision: by numpy's on one operator after the other, by PyTorch's on the whole model."""

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from transformers import Blip2ForConditionalGeneration

from catp.export.checkpoints.loading import Checkpoint
from catp.export.demo import CHECKPOINT, scenes
from catp.export.verification.emulated import emulated
from catp.export.verification.emulation import SUMS, emulate
from catp.export.verification.parity import RELATIVE_ERROR, relative_error
from catp.export.verification.reference import Reference
from catp.runtime import Pipeline
from catp.runtime.bundle.folder import open_bundle

HALF = {
    "fp16": (TensorProto.FLOAT16, np.dtype(np.float16), torch.float16),
    "bf16": (TensorProto.BFLOAT16, np.dtype(ml_dtypes.bfloat16), torch.bfloat16),
}
EXPORTED = ["fp16", pytest.param("bf16", marks=pytest.mark.heavy)]
Bundles = Callable[[str], Path]


@pytest.fixture
def half(request: pytest.FixtureRequest) -> Bundles:
    names = {"fp16": "half_bundle", "bf16": "bf16_bundle"}
    return lambda precision: Path(request.getfixturevalue(names[precision]))


@pytest.mark.parametrize("precision", HALF)
def test_every_operator_computes_in_float32_and_rounds_its_result(precision: str) -> None:
    kind, dtype, _ = HALF[precision]

    def rounded(values: np.ndarray) -> np.ndarray:
        return values.astype(dtype).astype(np.float32)

    rng = np.random.default_rng(0)
    x, past = (rng.normal(size=(4, 8)).astype(np.float32) for _ in range(2))
    weight, bias = (rng.normal(size=shape).astype(dtype) for shape in ((8, 8), (8,)))
    nodes = [
        helper.make_node("Cast", ["x"], ["narrow"], to=kind),
        helper.make_node("MatMul", ["narrow", "weight"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["sum"]),
        helper.make_node("Mul", ["sum", "past"], ["present"]),
        helper.make_node("Cast", ["present"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["wide", "x"], ["y"]),
    ]

    def value(name: str, data_type: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, data_type, [4, 8])

    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT), value("past", kind)],
        [value("present", kind), value("y", TensorProto.FLOAT)],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)
    if precision == "bf16":
        with pytest.raises(Exception, match="NOT_IMPLEMENTED"):  # what makes all this necessary
            ort.InferenceSession(model.SerializeToString())
    assert len(emulate(model)) == 5  # "past", and what the nodes output in half precision
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString())
    assert {tensor.type for tensor in (*session.get_inputs(), *session.get_outputs())} == {"tensor(float)"}
    present, y = session.run(["present", "y"], {"x": x, "past": past})
    product = rounded(rounded(x) @ weight.astype(np.float32))
    expected = rounded(rounded(product + bias.astype(np.float32)) * rounded(past))
    # Sums in another order may round the other way, and that one step of the last bit carries on.
    step = float(ml_dtypes.finfo(dtype).eps)
    np.testing.assert_allclose(present, expected, rtol=step, atol=step)
    assert (present == rounded(present)).all() and (present == expected).mean() > 0.9
    np.testing.assert_array_equal(y, present + x)  # float32 stays float32


@pytest.mark.parametrize("precision", EXPORTED)
def test_nothing_is_written_and_no_caller_sees_what_is_watched(precision: str, half: Bundles) -> None:
    folder = half(precision)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    original = open_bundle(folder)
    bundle, provider = emulated(original)
    for name, spec in bundle.manifest.graphs.items():
        dtypes = {tensor.dtype for tensor in (*spec.inputs, *spec.outputs)}
        assert dtypes <= {"float32", "int64"} and spec.precision == "fp32"
        provider.engine(bundle, name)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    pixels = np.zeros((1, 3, bundle.manifest.image.height, bundle.manifest.image.width), np.float32)
    outputs = provider.engine(bundle, "vision_encoder").bind({"pixel_values": pixels}).run()
    assert set(outputs) == {tensor.name for tensor in original.manifest.graphs["vision_encoder"].outputs}


@pytest.mark.parametrize("precision", EXPORTED)
def test_it_errs_as_pytorch_does(precision: str, half: Bundles, demo_checkpoint: Checkpoint) -> None:
    dtype = HALF[precision][2]
    stand_in = Pipeline(*emulated(open_bundle(half(precision))))
    model = Blip2ForConditionalGeneration.from_pretrained(CHECKPOINT).to(dtype).eval()
    reference = Reference(demo_checkpoint)
    examples = list(scenes.examples(16, seed=5))
    pixel_values = reference.pixel_values([example.image for example in examples])
    exact = reference.image_embeds(pixel_values).embeds.numpy()
    with torch.no_grad():
        theirs = model.vision_model(pixel_values.to(dtype)).last_hidden_state.float().numpy()
    ours = stand_in.encode(pixel_values.numpy())["image_embeds"].numpy()
    assert relative_error(ours, theirs) < RELATIVE_ERROR[precision] / 4
    error, their_error = ours - exact, theirs - exact
    assert np.abs(error).mean() == pytest.approx(np.abs(their_error).mean(), rel=0.1)
    assert np.corrcoef(error.ravel(), their_error.ravel())[0, 1] > 0.5  # the same roundings, not just as many

    image = [model.config.image_token_index] * model.config.num_query_tokens
    for example, pixels in zip(examples, pixel_values):
        ids = torch.tensor([image + reference.tokenize(example.question.prompt)])
        with torch.no_grad():
            tokens = model.generate(
                pixel_values=pixels[None].to(dtype), input_ids=ids, max_new_tokens=8, do_sample=False
            )[0].tolist()
        (answer,) = stand_in.generate([example.image], [example.question.prompt], ratio=0, max_new_tokens=8)
        assert answer.token_ids == tokens[-len(answer.token_ids) :]


def graph_of(kind: int, nodes: list[onnx.NodeProto], shape: list[int], **weights: np.ndarray) -> onnx.ModelProto:
    """A model from "x" to "y" in half precision, both of that shape."""
    value = [helper.make_tensor_value_info(name, kind, shape) for name in ("x", "y")]
    initializers = [numpy_helper.from_array(weight, name) for name, weight in weights.items()]
    graph = helper.make_graph(nodes, "g", value[:1], value[1:], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)


def found(model: onnx.ModelProto, x: np.ndarray) -> list[str]:
    """What is said of results that are not finite, in order."""
    watched = emulate(model)
    session = ort.InferenceSession(model.SerializeToString())
    (sums,) = session.run([SUMS], {"x": x.astype(np.float32)})
    assert sums.shape == (len(watched),)
    return [one.describe(float(total)) for one, total in zip(watched, sums) if not np.isfinite(total)]


@pytest.mark.parametrize(("more", "exceeds"), [(32, False), (47, False), (48, True)])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_number_of_fp16_passes_and_the_next_is_refused(more: float, exceeds: bool, sign: int) -> None:
    """As numpy rounds: 65504 is the largest, 65519 becomes it, 65520 becomes infinite; one element among many."""
    with np.errstate(over="ignore"):
        assert np.isinf(np.float16(65472 + more)) == exceeds
    x, weight = np.ones((3, 7)), np.ones((3, 7), np.float16)
    x[2, 5], weight[2, 5] = sign * 65472, sign * more
    nodes = [helper.make_node("Add", ["x", "layers.3.norm.weight"], ["y"], name="sum")]
    model = graph_of(TensorProto.FLOAT16, nodes, [3, 7], **{"layers.3.norm.weight": weight})
    wanted = ["layers.3.norm: the result of Add sum exceeds 65504, the largest number in fp16"]
    assert found(model, x) == (wanted if exceeds else [])


def test_results_follow_one_another_and_the_first_is_the_cause() -> None:
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["square"], name="square"),
        helper.make_node("Sub", ["square", "square"], ["none"], name="difference"),
        helper.make_node("Relu", ["none"], ["y"], name="relu"),
    ]
    said = found(graph_of(TensorProto.FLOAT16, nodes, [1, 2]), np.array([[300, 1]]))
    assert said[0] == "the result of Mul square exceeds 65504, the largest number in fp16"
    assert said[1] == "the result of Sub difference is not a number in fp16"
    assert found(graph_of(TensorProto.BFLOAT16, nodes, [1, 2]), np.array([[300, 1]])) == []
    said = found(graph_of(TensorProto.BFLOAT16, nodes, [1, 2]), np.array([[3e19, 1]]))
    assert said[0] == "the result of Mul square exceeds 3.39e38, the largest number in bf16"


def test_sums_keep_no_tensor_in_memory(half_bundle: Path) -> None:
    """Each follows what it is the sum of, and the engine runs nodes in that order."""
    model = onnx.load(half_bundle / "language_model.onnx", load_external_data=False)
    watched = emulate(model)
    nodes = list(model.graph.node)
    sums = [index for index, node in enumerate(nodes) if node.op_type == "ReduceL1"]
    assert len(sums) == len(watched) and all(nodes[i].input[0] in nodes[i - 1].output for i in sums)
    bundle, provider = emulated(open_bundle(half_bundle))
    session = provider.engine(bundle, "vision_encoder")._engine.session
    assert session.get_session_options().execution_order == ort.ExecutionOrder.PRIORITY_BASED


def test_an_input_beyond_the_range_is_named() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"], name="relu")]
    said = found(graph_of(TensorProto.FLOAT16, nodes, [1, 2]), np.array([[-7e4, 1]]))  # the result of Relu is finite
    assert said == ["its input x: the result of rounding it exceeds 65504, the largest number in fp16"]
