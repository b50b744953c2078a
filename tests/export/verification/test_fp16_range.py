"""Results beyond fp16 in PyTorch's float16 are refused by name in every graph and family; those just within pass."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from catp.export.checkpoints.loading import load_checkpoint
from catp.export.commands.export import app
from catp.export.demo import CHECKPOINT, samples
from catp.export.exporter import export_bundle
from catp.runtime.errors import ParityError
from catp.runtime.inputs.images import load_image

WITHIN, BEYOND = 45_000, 160_000
"""With room for what the export asks beside, pruned tokens at both kinds of positions, and for the other tokens that
float16 may choose."""


@dataclass(frozen=True)
class Case:
    """Two layers, the first of which is multiplied by what the second is divided by: in float32 nothing changes.

    Args:
        channel: the one output that is multiplied, where a function that is not linear lies between: the second layer
            ignores it.
    """

    checkpoint: str  # fixture
    first: str
    second: str
    message: str
    channel: int | None = None

    @torch.no_grad()
    def scale(self, model: Any, factor: float) -> None:
        first, second = model.get_submodule(self.first), model.get_submodule(self.second)
        rows = slice(None) if self.channel is None else self.channel
        for parameter in first.parameters():
            parameter[rows] *= factor
        if self.channel is None:
            second.weight /= factor
        else:
            second.weight[:, self.channel] = 0

    @contextmanager
    def watched(self, model: Any) -> Iterator[list[float]]:
        """While it lasts, the largest numbers that come out of the first layer and go into the second."""
        seen: list[float] = []

        def look(values: torch.Tensor) -> None:
            seen.append(float((values if self.channel is None else values[..., self.channel]).abs().max()))

        hooks = [
            model.get_submodule(self.first).register_forward_hook(lambda _, inputs, output: look(output)),
            model.get_submodule(self.second).register_forward_pre_hook(lambda _, inputs: look(inputs[0])),
        ]
        yield seen
        for hook in hooks:
            hook.remove()


CASES = {
    "OPT": Case(
        "demo", "language_model.model.decoder.layers.1.self_attn.v_proj",
        "language_model.model.decoder.layers.1.self_attn.out_proj",
        r"language_model: decoder\.decoder\.layers\.1\.self_attn\.v_proj: the result of (MatMul|Add|Gemm) \S+ exceeds",
    ),
    "Llama": Case(
        "odd_checkpoint", "language_model.model.layers.1.mlp.up_proj", "language_model.model.layers.1.mlp.down_proj",
        r"language_model: decoder\.layers\.1\.mlp(\.up_proj)?: the result of (MatMul|Mul) \S+ exceeds",
    ),
    "T5 encoder": Case(
        "t5_checkpoint", "language_model.encoder.block.0.layer.1.DenseReluDense.wi_1",
        "language_model.encoder.block.0.layer.1.DenseReluDense.wo",
        r"text_encoder: encoder\.block\.0\.layer\.1\.DenseReluDense(\.wi_1)?: the result of (MatMul|Mul) \S+ exceeds",
    ),
    "T5 decoder": Case(
        "instructblip_t5_checkpoint", "language_model.decoder.block.1.layer.2.DenseReluDense.wi_1",
        "language_model.decoder.block.1.layer.2.DenseReluDense.wo",
        r"text_decoder: decoder\.block\.1\.layer\.2\.DenseReluDense(\.wi_1)?: the result of (MatMul|Mul) \S+ exceeds",
    ),
    "vision": Case(
        "retrieval_checkpoint", "vision_model.encoder.layers.0.mlp.fc1", "vision_model.encoder.layers.0.mlp.fc2",
        r"vision_encoder: vision_model\.encoder\.layers\.0\.mlp\.fc1: the result of (MatMul|Add) \S+ exceeds", 5,
    ),
}  # fmt: skip


@torch.no_grad()
def run(checkpoint: Any, dtype: torch.dtype) -> None:
    """Hugging Face's model, asked what the export asks."""
    model = checkpoint.model
    if checkpoint.family.frames is None and not checkpoint.family.generates_text:
        for sample in samples():
            model.vision_model(pixels(checkpoint, [load_image(sample.image)]).to(dtype))
        return
    pictures = [load_image(sample.image) for sample in samples()]
    for row, sample in enumerate(samples()):
        frames = checkpoint.family.frames or 1
        seen = pixels(checkpoint, [pictures[(row + frame) % len(pictures)] for frame in range(frames)])
        given: dict[str, Any] = {"pixel_values": (seen if checkpoint.family.frames is None else seen[None]).to(dtype)}
        if checkpoint.instruction_tokenizer is not None:
            words = checkpoint.instruction_tokenizer(sample.prompt, return_tensors="pt")
            given |= {"qformer_input_ids": words.input_ids, "qformer_attention_mask": words.attention_mask}
        ids = [checkpoint.placeholder_id] * (model.config.num_query_tokens * frames)
        ids += checkpoint.tokenizer(sample.prompt).input_ids
        given["input_ids"] = torch.tensor([ids])
        given["attention_mask"] = torch.ones_like(given["input_ids"])
        # Hugging Face's own cache of T5 wants as many layers in the decoder as in the encoder.
        model.generate(**given, max_new_tokens=12, do_sample=False, use_cache=False)


def pixels(checkpoint: Any, pictures: list[Any]) -> torch.Tensor:
    return torch.tensor(np.stack(checkpoint.image_processor(pictures)["pixel_values"])).reshape(
        len(pictures), 3, *[checkpoint.model.config.vision_config.image_size] * 2
    )


def largest(case: Case, folder: Path, dtype: torch.dtype) -> float:
    """NaN, or infinite, where the run overflows."""
    checkpoint = load_checkpoint(str(folder), None, dtype)
    with case.watched(checkpoint.model) as seen:
        run(checkpoint, dtype)
    return float(np.max(seen))


def scaled(case: Case, source: Path, folder: Path, target: float) -> Path:
    """The checkpoint, whose largest number on the way is `target`."""
    factor = target / largest(case, source, torch.float32)
    model = load_checkpoint(str(source)).model
    case.scale(model, factor)
    shutil.copytree(source, folder)
    model.save_pretrained(folder)
    return folder


def heavy(*names: str) -> list[Any]:
    """Cases that `make test` leaves out: each exports a model or two."""
    return [pytest.param(name, marks=pytest.mark.heavy) for name in names]


def source_of(case: Case, request: pytest.FixtureRequest) -> Path:
    return CHECKPOINT if case.checkpoint == "demo" else Path(request.getfixturevalue(case.checkpoint))


@pytest.mark.parametrize("name", heavy(*CASES))
def test_every_graph_of_every_family(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    case, source = CASES[name], source_of(CASES[name], request)
    folder = scaled(case, source, tmp_path / "beyond", BEYOND)
    assert not np.isfinite(largest(case, folder, torch.float16))
    with pytest.raises(ParityError, match=f"^{case.message} 65504, .*; nothing was published"):
        export_bundle(str(folder), tmp_path / "bundle", precision="fp16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["beyond"]


@pytest.mark.heavy  # exports twice
@pytest.mark.parametrize("name", ["OPT", "Llama"])
def test_what_is_just_within_the_range(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    case, source = CASES[name], source_of(CASES[name], request)
    folder = scaled(case, source, tmp_path / "within", WITHIN)
    assert 0.9 * WITHIN < largest(case, folder, torch.float16) < 65504
    bundle = export_bundle(str(folder), tmp_path / "bundle", precision="fp16")
    checks = {check.subject: check.value for check in bundle.manifest.parity if "can't hold" in check.measure}
    assert checks == {f"{graph} (fp16 emulated in float32)": 0 for graph in bundle.manifest.graphs}


@pytest.mark.heavy  # exports; the case of OPT runs with every change
def test_cubes_beyond_the_range_that_only_a_tanh_reads(t5_checkpoint: Path, tmp_path: Path) -> None:
    """T5's GELU in float16 is right for numbers whose third power is infinite."""
    layer = "language_model.decoder.block.0.layer.2.DenseReluDense"
    case = Case("t5_checkpoint", f"{layer}.wi_0", f"{layer}.wo", "")
    model = load_checkpoint(str(t5_checkpoint)).model
    with torch.no_grad():
        model.get_submodule(case.first).weight *= 20
    shutil.copytree(t5_checkpoint, tmp_path / "cubes")
    model.save_pretrained(tmp_path / "cubes")
    gates = Case("t5_checkpoint", f"{layer}.wi_0", f"{layer}.wi_0", "")
    cube = largest(gates, tmp_path / "cubes", torch.float32) ** 3
    assert cube > 65504 and np.isfinite(largest(case, tmp_path / "cubes", torch.float16))
    export_bundle(str(tmp_path / "cubes"), tmp_path / "bundle", precision="fp16")


@pytest.mark.heavy  # exports; the case of OPT runs with every change
def test_an_adapter_that_takes_it_beyond(tmp_path: Path) -> None:
    layer = "language_model.model.decoder.layers.0.self_attn.v_proj"
    generator = torch.Generator().manual_seed(0)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    sides = {"lora_A": torch.randn(4, 128, generator=generator), "lora_B": torch.randn(128, 4, generator=generator)}
    named = {f"base_model.model.{layer}.{side}.weight": tensor for side, tensor in sides.items()}
    save_file(named, adapter / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 4_000, "target_modules": ["v_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    merged = load_checkpoint(str(CHECKPOINT), adapter=str(adapter)).model
    shutil.copytree(CHECKPOINT, tmp_path / "merged")
    merged.save_pretrained(tmp_path / "merged")
    case = Case("demo", layer, layer.replace("v_proj", "out_proj"), "")
    assert not np.isfinite(largest(case, tmp_path / "merged", torch.float16))
    arguments = ["--adapter", str(adapter), "--precision", "fp16", "-o", str(tmp_path / "bundle")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1 and "Traceback" not in result.output
    said = " ".join(result.stderr.split())
    assert "language_model: decoder.decoder.layers.0.self_attn.v_proj: the result of MatMul " in said
    assert "exceeds 65504, the largest number in fp16; nothing was published" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "merged"]


@pytest.mark.heavy  # exports; the case of OPT runs with every change
def test_weights_beyond_the_range_are_named_whether_anything_reads_them(tmp_path: Path) -> None:
    model = load_checkpoint(str(CHECKPOINT)).model
    decoder = model.language_model.model.decoder
    with torch.no_grad():
        decoder.layers[1].fc2.weight[3, 5] = -65520  # stored transposed
        decoder.layers[0].fc2.weight[3, 5] = 65519  # becomes 65504
        decoder.embed_positions.weight[-1, 0] = 1e5  # no prompt comes so far
    shutil.copytree(CHECKPOINT, tmp_path / "beyond")
    model.save_pretrained(tmp_path / "beyond")
    with pytest.raises(ParityError) as refused:
        export_bundle(str(tmp_path / "beyond"), tmp_path / "bundle", precision="fp16")
    assert str(refused.value) == (
        "language_model: decoder.decoder.embed_positions.weight, decoder.decoder.layers.1.fc2.weight: weights beyond "
        "the largest number in fp16; nothing was published. Give --precision bf16 or fp32"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["beyond"]
