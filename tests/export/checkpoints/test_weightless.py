"""Graphs traced without weights hold those of the checkpoint, and are written without loading them all."""

import re
import weakref
from pathlib import Path

import onnx
import pytest
import torch
from onnx import numpy_helper
from onnx_ir.tensor_adapters import TorchTensor
from safetensors.torch import load_file, save_file

from catp.export.checkpoints import weightless
from catp.export.checkpoints.loading import load_checkpoint
from catp.export.checkpoints.weightless import without_weights
from catp.export.demo import CHECKPOINT
from catp.export.graphs import Graph
from catp.export.writing.writer import write_graph

WIDTH = 2048


class Layers(torch.nn.Module):
    """Products whose weights are read as they are, transposed, and both ways."""

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(width, width, bias=i == 0) for i in range(layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x @ self.layers[0].weight


def write(module: torch.nn.Module, folder: Path, dtype: torch.dtype, width: int, load: bool = True) -> onnx.ModelProto:
    def set_dtypes() -> None:
        for parameter in module.parameters():
            parameter.data = parameter.data.to(dtype)

    with without_weights(module, set_dtypes) as stored:
        batch = torch.export.Dim("batch")
        example = (torch.zeros(2, 3, width, dtype=dtype),)
        write_graph(Graph("g", module, example, ["x"], ["y"], {"x": {0: batch}}), folder, "fp32", stored)
    return onnx.load(folder / "g.onnx", load_external_data=load)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_are_the_stored_ones_in_the_graph_s_type(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = Layers(3, 100)
    model = write(module, tmp_path, dtype, 100)
    found = [
        torch.tensor(numpy_helper.to_array(t).astype("float32")) for t in model.graph.initializer if len(t.dims) == 2
    ]
    for layer in module.layers:
        weight = layer.weight.detach().to(dtype).float()
        assert any(matrix.equal(weight) or matrix.equal(weight.T) for matrix in found)
    assert len(found) == 3


def test_files_of_this_machine_are_not_named(tmp_path: Path) -> None:
    write(Layers(2, 40), tmp_path, torch.float32, 40)
    content = (tmp_path / "g.onnx").read_bytes()
    assert b"layers.1" in content  # scopes name the layers for calibration
    assert b".py" not in content and str(Path.cwd()).encode() not in content


def test_a_model_is_itself_again() -> None:
    model = load_checkpoint(str(CHECKPOINT), dtype=None).model
    before = {name: (parameter, parameter.data_ptr()) for name, parameter in model.named_parameters()}
    with without_weights(model):
        assert model.language_model.lm_head.weight is model.get_input_embeddings().weight  # tied as they were
        assert all(parameter is not before[name][0] for name, parameter in model.named_parameters())
    assert before == {name: (parameter, parameter.data_ptr()) for name, parameter in model.named_parameters()}


@pytest.mark.heavy
def test_writing_takes_the_memory_of_one_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """12 matrices of 16 MB, mapped, and cast on their way: one after the other is held in its new type."""
    layers, matrix = 12, 4 * WIDTH**2
    held: list[int] = [0]

    def hold(content: torch.Tensor, name: str) -> TorchTensor:
        held.append(held[-1] + content.nbytes)
        weakref.finalize(content, lambda size: held.append(held[-1] - size), content.nbytes)
        return TorchTensor(content, name=name)

    with torch.device("meta"):
        module = Layers(layers, WIDTH)
    state = {name: torch.zeros(parameter.shape) for name, parameter in module.named_parameters()}
    save_file(state, tmp_path / "weights.safetensors")
    del state
    module.load_state_dict(load_file(tmp_path / "weights.safetensors"), assign=True)
    (small := tmp_path / "small").mkdir()
    write(Layers(layers, 8), small, torch.float16, 8)  # so that what tracing itself needs is not counted
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _peak()
    monkeypatch.setattr(weightless, "TorchTensor", hold)
    write(module, tmp_path, torch.float16, WIDTH, load=False)
    assert len(held) > 2 * layers and max(held) <= matrix and held[-1] == 0  # two at once, in float16
    assert (tmp_path / "g.onnx_data").stat().st_size > layers * matrix / 2
    # Of what was freed, PyTorch's allocator keeps up to five for a while. All of them would be twelve.
    assert _peak() - before < 8 * matrix


def _peak() -> int:
    """Most bytes resident, mapped files included."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return 1024 * int(found[1])
