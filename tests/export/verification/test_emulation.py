"""What is emulated is bfloat16: by numpy's on one operator after the other, by PyTorch's on the whole model."""

import shutil
from collections.abc import Iterator
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
from catp.export.verification.emulation import emulate, emulated
from catp.export.verification.parity import RELATIVE_ERROR, relative_error
from catp.export.verification.reference import Reference
from catp.runtime import Pipeline
from catp.runtime.bundle.folder import open_bundle
from catp.runtime.providers import open_provider


def in_bf16(values: np.ndarray) -> np.ndarray:
    """Rounded to bfloat16, in float32."""
    return values.astype(ml_dtypes.bfloat16).astype(np.float32)


def test_every_operator_computes_in_float32_and_rounds_its_result() -> None:
    rng = np.random.default_rng(0)
    x, past = (rng.normal(size=(4, 8)).astype(np.float32) for _ in range(2))
    weight, bias = (rng.normal(size=shape).astype(ml_dtypes.bfloat16) for shape in ((8, 8), (8,)))
    nodes = [
        helper.make_node("Cast", ["x"], ["narrow"], to=TensorProto.BFLOAT16),
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
        [value("x", TensorProto.FLOAT), value("past", TensorProto.BFLOAT16)],
        [value("present", TensorProto.BFLOAT16), value("y", TensorProto.FLOAT)],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)
    with pytest.raises(Exception, match="NOT_IMPLEMENTED"):  # what makes all this necessary
        ort.InferenceSession(model.SerializeToString())
    emulate(model)
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString())
    assert {tensor.type for tensor in (*session.get_inputs(), *session.get_outputs())} == {"tensor(float)"}
    present, y = session.run(["present", "y"], {"x": x, "past": past})
    product = in_bf16(in_bf16(x) @ weight.astype(np.float32))
    expected = in_bf16(in_bf16(product + bias.astype(np.float32)) * in_bf16(past))
    # Sums in another order may round the other way, and that one step of 8 bits carries on.
    np.testing.assert_allclose(present, expected, rtol=2**-7, atol=2**-7)
    assert (present == in_bf16(present)).all() and (present == expected).mean() > 0.9
    np.testing.assert_array_equal(y, present + x)  # float32 stays float32


@pytest.fixture(scope="module")
def stand_in(bf16_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    folder = shutil.copytree(bf16_bundle, tmp_path_factory.mktemp("emulated") / "bundle")
    with emulated(open_bundle(folder)) as bundle:
        yield Pipeline(bundle, open_provider("cpu"))


def test_it_is_there_while_it_lasts_and_shares_the_weights(bf16_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bf16_bundle, tmp_path / "bundle"))
    before = {path.name for path in folder.iterdir()}
    original = open_bundle(folder)
    with emulated(original) as bundle:
        added = {path.name for path in folder.iterdir()} - before
        assert added == {spec.file.path for spec in bundle.manifest.graphs.values()}
        for name, spec in bundle.manifest.graphs.items():
            assert spec.external_data == original.manifest.graphs[name].external_data
        dtypes = {t.dtype for graph in bundle.manifest.graphs.values() for t in (*graph.inputs, *graph.outputs)}
        assert dtypes == {"float32", "int64"}
        open_bundle(folder)  # it is no part of the bundle
    assert {path.name for path in folder.iterdir()} == before


def test_it_errs_as_pytorch_does_in_bfloat16(stand_in: Pipeline, demo_checkpoint: Checkpoint) -> None:
    model = Blip2ForConditionalGeneration.from_pretrained(CHECKPOINT).to(torch.bfloat16).eval()
    reference = Reference(demo_checkpoint)
    examples = list(scenes.examples(16, seed=5))
    pixel_values = reference.pixel_values([example.image for example in examples])
    exact = reference.image_embeds(pixel_values)[0].numpy()
    with torch.no_grad():
        theirs = model.vision_model(pixel_values.to(torch.bfloat16)).last_hidden_state.float().numpy()
    ours = stand_in.encode(pixel_values.numpy())["image_embeds"].numpy()
    assert relative_error(ours, theirs) < RELATIVE_ERROR["bf16"] / 4
    error, their_error = ours - exact, theirs - exact
    assert np.abs(error).mean() == pytest.approx(np.abs(their_error).mean(), rel=0.1)
    assert np.corrcoef(error.ravel(), their_error.ravel())[0, 1] > 0.5  # the same roundings, not just as many

    image = [model.config.image_token_index] * model.config.num_query_tokens
    for example, pixels in zip(examples, pixel_values):
        ids = torch.tensor([image + reference.tokenize(example.question.prompt)])
        with torch.no_grad():
            tokens = model.generate(
                pixel_values=pixels[None].to(torch.bfloat16), input_ids=ids, max_new_tokens=8, do_sample=False
            )[0].tolist()
        (answer,) = stand_in.generate([example.image], [example.question.prompt], ratio=0, max_new_tokens=8)
        assert answer.token_ids == tokens[-len(answer.token_ids) :]
