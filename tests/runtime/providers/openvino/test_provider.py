"""OpenVINO as a provider: the answers of ONNX Runtime and of Hugging Face, and what it leaves to ONNX Runtime."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from catp.export.checkpoints.loading import Checkpoint
from catp.export.demo import scenes
from catp.export.verification.reference import Reference
from catp.runtime import Pipeline
from catp.runtime.bundle.folder import Bundle, open_bundle
from catp.runtime.bundle.manifest import Quantization
from catp.runtime.commands.run import app as run_command
from catp.runtime.errors import BundleError, GraphError, UsageError
from catp.runtime.providers import open_provider
from catp.runtime.providers.onnx_runtime import OrtEngine
from catp.runtime.providers.openvino import provider as openvino_provider

pytest.importorskip("openvino", reason="an extra of its own: pip install '.[openvino]'")

from catp.runtime.providers.openvino.library import shared_core
from catp.runtime.providers.openvino.provider import OpenVinoEngine, OpenVinoProvider

EXAMPLES = list(scenes.examples(8, seed=5))
IMAGES = [example.image for example in EXAMPLES]
PROMPTS = [example.question.prompt for example in EXAMPLES]
ROUNDING = 1e-5
"""Of float32 sums in another order, relative to the largest number."""


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (openvino_provider.DEVICE_VARIABLE, openvino_provider.PRECISION_VARIABLE):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What providers log."""
    found: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    logger, handler = logging.getLogger("catp.runtime.providers"), Kept()
    logger.addHandler(handler)
    yield found
    logger.removeHandler(handler)


@pytest.fixture(scope="module")
def bundle(demo_bundle: Path) -> Bundle:
    return open_bundle(demo_bundle)


@pytest.fixture(scope="module")
def ours(demo_bundle: Path) -> Pipeline:
    return Pipeline.load(demo_bundle, "openvino", threads=1)


def error(found: np.ndarray, wanted: np.ndarray) -> float:
    assert found.shape == wanted.shape and found.dtype == wanted.dtype
    return float(np.abs(found.astype(np.float64) - wanted).max() / np.abs(wanted).max())


def outputs(provider: Any, bundle: Bundle, graph: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    found = provider.engine(bundle, graph).bind(inputs).run()
    return {name: np.array(tensor.numpy()) for name, tensor in found.items()}


@pytest.mark.parametrize("ratio", [0.0, 0.5, 0.75])
def test_tokens_and_kept_positions_are_those_of_onnx_runtime(ours: Pipeline, pipeline: Pipeline, ratio: float) -> None:
    wanted = pipeline.generate(IMAGES, PROMPTS, ratio=ratio)
    found = ours.generate(IMAGES, PROMPTS, ratio=ratio)
    assert [answer.token_ids for answer in found] == [answer.token_ids for answer in wanted]
    assert [answer.kept_indices for answer in found] == [answer.kept_indices for answer in wanted]
    alone = ours.generate(IMAGES[:1], PROMPTS[:1], ratio=ratio, num_beams=3)
    assert alone[0].token_ids == pipeline.generate(IMAGES[:1], PROMPTS[:1], ratio=ratio, num_beams=3)[0].token_ids


@torch.no_grad()
def test_answers_and_embeddings_are_those_of_hugging_face(ours: Pipeline, demo_checkpoint: Checkpoint) -> None:
    reference, model = Reference(demo_checkpoint), demo_checkpoint.model
    pixel_values = reference.pixel_values(IMAGES)
    wanted = model.vision_model(pixel_values).last_hidden_state.numpy()
    found = ours.image_side.encode(pixel_values.numpy())["image_embeds"].numpy()
    assert error(found, wanted) < ROUNDING
    answers = [answer.token_ids for answer in ours.generate(IMAGES, PROMPTS, ratio=0, max_new_tokens=10)]
    image = [model.config.image_token_index] * model.config.num_query_tokens
    for row, prompt in enumerate(PROMPTS):
        ids = torch.tensor([image + reference.tokenize(prompt)])
        rest = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "max_new_tokens": 10}
        output = model.generate(pixel_values=pixel_values[row : row + 1], **rest)
        assert answers[row] == output[0, ids.shape[1] :].tolist()


def test_the_language_model_stays_in_onnx_runtime_without_a_word(bundle: Bundle, said: list[str]) -> None:
    provider = open_provider("openvino")
    kinds = {graph: type(provider.engine(bundle, graph)) for graph in bundle.manifest.graphs}
    assert kinds == {
        "vision_encoder": OpenVinoEngine,
        "qformer_voting": OpenVinoEngine,
        "language_model": OrtEngine,
    }
    assert said == []


FAMILIES = ["half", "t5", "instructblip", "vqa", "caption", "pruned", "twice_pruned", "both"]


@pytest.mark.heavy
@pytest.mark.parametrize("name", FAMILIES)
def test_families_that_write_answer_alike(name: str, request: pytest.FixtureRequest, said: list[str]) -> None:
    """Image encoders, Q-Formers that read the prompt, question and text encoders: nothing falls back."""
    folder = request.getfixturevalue(f"{name}_bundle")
    cpu, ours = Pipeline.load(folder), Pipeline.load(folder, "openvino")
    wanted, found = (pipeline.generate(IMAGES[:3], PROMPTS[:3], max_new_tokens=8) for pipeline in (cpu, ours))
    assert [answer.token_ids for answer in found] == [answer.token_ids for answer in wanted]
    assert [answer.kept_indices for answer in found] == [answer.kept_indices for answer in wanted]
    assert said == []


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["retrieval", "blip_retrieval", "clip", "pruned_clip"])
def test_families_that_score_score_alike(name: str, request: pytest.FixtureRequest, said: list[str]) -> None:
    folder = request.getfixturevalue(f"{name}_bundle")
    texts = ["a red circle", "a black diamond on a table"]
    cpu, ours = Pipeline.load(folder), Pipeline.load(folder, "openvino")
    wanted, found = (pipeline.match(IMAGES[:2], texts) for pipeline in (cpu, ours))
    for match, same in zip(found, wanted, strict=True):
        assert match.similarity == pytest.approx(same.similarity, abs=1e-4)
        assert match.probability == pytest.approx(same.probability, abs=1e-4)
        assert match.kept_indices == same.kept_indices
    assert said == []


def test_bf16_multiplies_in_bf16(bundle: Bundle, pipeline: Pipeline) -> None:
    if "BF16" not in shared_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU does not multiply in bfloat16")
    provider = OpenVinoProvider("openvino", precision="bf16")
    inputs = {"pixel_values": pipeline.preprocess(IMAGES[:2])}
    wanted = outputs(open_provider("cpu"), bundle, "vision_encoder", inputs)["image_embeds"]
    # Eight bits of mantissa: coarser than float32, and no noise.
    assert 1e-3 < error(outputs(provider, bundle, "vision_encoder", inputs)["image_embeds"], wanted) < 0.1


@pytest.mark.parametrize(
    ("variable", "given", "message"),
    [
        ("CATP_OPENVINO_DEVICE", "NPU.7", r"device 'NPU.7': OpenVINO finds CPU.* on this machine"),
        ("CATP_OPENVINO_DEVICE", "toaster", r"device 'toaster': OpenVINO finds CPU"),
        ("CATP_OPENVINO_DEVICE", "HETERO:CPU", r"device 'HETERO:CPU': OpenVINO finds CPU"),
        ("CATP_OPENVINO_PRECISION", "f8", r"precision 'f8': OpenVINO's CPU multiplies in f32.* set CATP_OPENVINO_PREC"),
    ],
)
def test_settings_that_this_machine_has_not_are_one_line(
    demo_bundle: Path, monkeypatch: pytest.MonkeyPatch, variable: str, given: str, message: str
) -> None:
    monkeypatch.setenv(variable, given)
    with pytest.raises(UsageError, match=message):
        open_provider("openvino")
    arguments = [str(demo_bundle), "--provider", "openvino", "--image", "none.png", "--prompt", ""]
    result = CliRunner().invoke(run_command, arguments)
    asked = f"provider openvino: {variable.rpartition('_')[2].lower()} '{given}'"
    assert result.exit_code == 2 and asked in result.output


def test_a_missing_package_is_one_line_that_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UsageError, match=r"^provider openvino: OpenVINO is not installed; .*'\.\[cpu,openvino\]'$"):
        open_provider("openvino")


def test_a_graph_that_openvino_cant_read_runs_in_onnx_runtime(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    """The language model's in-place cache is an operator that it does not know."""
    monkeypatch.setattr(openvino_provider, "has_cache", lambda graph: False)
    assert type(open_provider("openvino").engine(bundle, "language_model")) is OrtEngine
    (line,) = said
    assert line.startswith("provider openvino: ONNX Runtime runs language_model on the CPU: OpenVINO 20")
    assert "TensorScatter" in line and "\n" not in line


def test_a_quantised_graph_stays_in_onnx_runtime(bundle: Bundle, said: list[str]) -> None:
    quantised = Quantization(
        format="int8", purpose="cpu", activations="dynamic", layers=1, bytes_before=4, bytes_after=1
    )
    graphs = dict(bundle.manifest.graphs)
    graphs["qformer_voting"] = graphs["qformer_voting"].model_copy(update={"quantization": quantised})
    changed = replace(bundle, manifest=bundle.manifest.model_copy(update={"graphs": graphs}))
    provider = open_provider("openvino")
    assert type(provider.engine(changed, "qformer_voting")) is OrtEngine
    assert type(provider.engine(changed, "vision_encoder")) is OpenVinoEngine
    (line,) = said
    assert line.endswith("runs qformer_voting on the CPU: it was quantised to int8 for ONNX Runtime's kernels")


def test_bf16_bundles_are_refused_with_the_way_out(bundle: Bundle) -> None:
    changed = replace(bundle, manifest=bundle.manifest.model_copy(update={"precision": "bf16"}))
    with pytest.raises(UsageError, match=r"is in bf16, .*export with --precision fp32, and set CATP_OPENVINO_PREC"):
        open_provider("openvino").engine(changed, "vision_encoder")


def test_a_manifest_of_other_tensors_is_refused(bundle: Bundle) -> None:
    graphs = dict(bundle.manifest.graphs)
    graphs["vision_encoder"] = graphs["qformer_voting"].model_copy(update={"file": graphs["vision_encoder"].file})
    changed = replace(bundle, manifest=bundle.manifest.model_copy(update={"graphs": graphs}))
    with pytest.raises(BundleError, match=r"describes other tensors than vision_encoder.onnx has"):
        open_provider("openvino").engine(changed, "vision_encoder")


def test_outputs_outlive_the_next_call_and_inputs_are_copied(bundle: Bundle, pipeline: Pipeline) -> None:
    engine = open_provider("openvino").engine(bundle, "vision_encoder")
    pixels = pipeline.preprocess(IMAGES[:2])
    given = pixels[:1].copy()
    step = engine.bind({"pixel_values": given})
    given[...] = 7
    first = step.run()["image_embeds"]
    kept = first.numpy().copy()
    step.update("pixel_values", pixels[1:])
    second = step.run()["image_embeds"].numpy()
    assert (first.numpy() == kept).all() and not (second == kept).any()
    both = engine.bind({"pixel_values": pixels}).run()["image_embeds"].numpy()
    assert error(np.concatenate([kept, second]), both) < ROUNDING


def test_fixed_shapes_are_compiled_for_each_batch(bundle: Bundle, pipeline: Pipeline) -> None:
    """As an NPU needs it; here on the CPU."""
    spec = bundle.manifest.graphs["vision_encoder"]
    model = shared_core().read_model(str(bundle.graph_file("vision_encoder")))
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    engine = OpenVinoEngine(model, spec, "vision_encoder", "CPU", options, fixed=True)
    pixels = pipeline.preprocess(IMAGES[:3])
    wanted = outputs(open_provider("cpu"), bundle, "vision_encoder", {"pixel_values": pixels})["image_embeds"]
    for batch in (3, 1, 3):
        found = engine.bind({"pixel_values": pixels[:batch]}).run()["image_embeds"].numpy()
        assert error(found, wanted[:batch]) < ROUNDING
    assert list(engine._requests) == [1, 3]


def test_what_an_npu_gets(bundle: Bundle) -> None:
    """Graphs of which nothing but the batch is free: not the Q-Former, which keeps as many tokens as it is told to."""
    provider = open_provider("openvino")
    assert isinstance(provider, OpenVinoProvider)
    provider.device = "NPU"
    graphs = bundle.manifest.graphs
    assert provider._left_alone(graphs["vision_encoder"]) is None
    reason = provider._left_alone(graphs["qformer_voting"])
    assert reason == "an NPU takes fixed shapes, and more than its batch is free"


def test_a_call_that_openvino_cant_run_names_the_graph(bundle: Bundle) -> None:
    engine = open_provider("openvino").engine(bundle, "vision_encoder")
    with pytest.raises(GraphError, match=r"^vision_encoder: OpenVINO can't run it \(.+\)$"):
        engine.bind({"pixel_values": np.zeros((1, 3, 5, 5), np.float32)}).run()


PROGRAM = """
import faulthandler, gc, os, signal, sys
faulthandler.enable()
from catp.runtime import Pipeline
for _ in range(2):
    pipeline = Pipeline.load(sys.argv[1], "openvino", threads=1)
    del pipeline
    gc.collect()
signal.signal(signal.SIGUSR1, lambda number, frame: print("handled", flush=True))
os.kill(os.getpid(), signal.SIGUSR1)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_signals_are_handled_after_pipelines_came_and_went(demo_bundle: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(demo_bundle)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[4])
    assert (result.returncode, result.stdout) == (0, "handled\n"), result.stderr
