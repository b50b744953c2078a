"""LoRA adapters: merged, a model computes what it does with the adapter beside its weights, as it was trained."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional
from transformers import Blip2ForConditionalGeneration

from catp.export.checkpoints.adapter import merge_adapter
from catp.export.checkpoints.loading import load_checkpoint
from catp.export.demo import CHECKPOINT
from catp.runtime import CatpError, UsageError

DECODER = "language_model.model.decoder"
QUERY, FC1, TABLE = f"{DECODER}.layers.0.self_attn.q_proj", f"{DECODER}.layers.1.fc1", f"{DECODER}.embed_tokens"
PATCHES, HEAD = "vision_model.embeddings.patch_embedding", "language_model.lm_head"
RANK, ALPHA = 4, 10.0


@pytest.fixture
def base() -> Blip2ForConditionalGeneration:
    return Blip2ForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()


def save_adapter(folder: Path, tensors: dict[str, torch.Tensor], **config: object) -> Path:
    """As PEFT names things."""
    folder.mkdir()
    named = {f"base_model.model.{name}": tensor.contiguous() for name, tensor in tensors.items()}
    save_file(named, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def low_rank(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) * 0.2


def logits(model: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    ids = torch.tensor([[model.config.image_token_index] * model.config.num_query_tokens + [2, 9, 30, 77]])
    pixels = torch.randn((1, 3, 96, 96), generator=generator)
    with torch.no_grad():
        return model(pixel_values=pixels, input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def add_to_output(model: Any, module: str, extra: Callable[[torch.Tensor], torch.Tensor]) -> None:
    hook = lambda _, inputs, output: output + extra(inputs[0])  # noqa: E731
    model.get_submodule(module).register_forward_hook(hook)


@pytest.mark.parametrize(
    ("config", "scales"),
    [
        ({}, (ALPHA / RANK, ALPHA / RANK)),
        ({"use_rslora": True}, (ALPHA / RANK**0.5, ALPHA / RANK**0.5)),
        ({"alpha_pattern": {"layers.1.fc1": 3}}, (ALPHA / RANK, 3 / RANK)),
    ],
)
def test_products_embeddings_and_convolutions(
    tmp_path: Path, base: Any, config: dict[str, object], scales: tuple[float, float]
) -> None:
    a = {QUERY: low_rank(RANK, 128), FC1: low_rank(RANK, 128)}
    b = {QUERY: low_rank(128, RANK), FC1: low_rank(512, RANK)}
    patches = low_rank(RANK, 3, 16, 16), low_rank(128, RANK, 1, 1)
    table = low_rank(RANK, 384), low_rank(128, RANK)
    tensors = {
        **{f"{name}.lora_A.weight": tensor for name, tensor in a.items()},
        **{f"{name}.lora_B.weight": tensor for name, tensor in b.items()},
        f"{PATCHES}.lora_A.weight": patches[0],
        f"{PATCHES}.lora_B.weight": patches[1],
        f"{TABLE}.lora_embedding_A": table[0],
        f"{TABLE}.lora_embedding_B": table[1],
    }
    merged = load_checkpoint(
        str(CHECKPOINT), None, None, str(save_adapter(tmp_path / "adapter", tensors, **config))
    ).model
    before = logits(base)
    for name, scale in zip((QUERY, FC1), scales):
        add_to_output(base, name, lambda x, name=name, scale=scale: scale * (x @ a[name].T @ b[name].T))
    scale = scales[0]
    add_to_output(
        base, PATCHES, lambda x: scale * functional.conv2d(functional.conv2d(x, patches[0], stride=16), patches[1])
    )
    # The head is tied to the table: the adapter was trained to change what words go in as, not what comes out.
    add_to_output(base, TABLE, lambda ids: scale * (table[0].T[ids] @ table[1].T))
    wanted = logits(base)
    assert (wanted - before).abs().max() > 1
    torch.testing.assert_close(logits(merged.float()), wanted, rtol=1e-4, atol=1e-4)


def test_a_head_that_was_trained_leaves_the_embeddings_that_it_was_tied_to(tmp_path: Path, base: Any) -> None:
    head, bias = low_rank(384, 128), low_rank(128)
    # With bias="all", PEFT names some tensors after its wrappers, and saves what was there before.
    wrapped = {"language_projection.modules_to_save.bias": bias, "language_projection.original_module.bias": 2 * bias}
    merge_adapter(base, str(save_adapter(tmp_path / "adapter", {f"{HEAD}.weight": head, **wrapped})))
    assert base.language_projection.bias.equal(bias)
    assert base.language_model.lm_head.weight.equal(head)
    assert not base.get_input_embeddings().weight.equal(head)


def test_tokens_added_before_training_bring_their_embeddings(tmp_path: Path, base: Any) -> None:
    table = low_rank(387, 128)
    merge_adapter(base, str(save_adapter(tmp_path / "adapter", {f"{TABLE}.weight": table})))
    assert base.get_input_embeddings().weight.equal(table) and logits(base).shape[-1] == 387


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        ({}, {"peft_type": "IA3"}, "peft_type 'IA3'; accepted: plain LoRA"),
        ({}, {"use_dora": True}, "use_dora; accepted: plain LoRA"),
        ({}, {"peft_type": None, "r": 4}, "accepted: plain LoRA"),
        ({}, {"lora_alpha": None}, "adapter_config.json is not one of PEFT's"),
        ({"decoder.q_proj": (4, 128)}, {}, "changes decoder.q_proj.weight, which the model does not have"),
        ({QUERY: (4, 64)}, {}, "is [128, 64] there and [128, 128] in the model"),
    ],
)
def test_what_can_not_be_merged_is_refused(
    tmp_path: Path, base: Any, tensors: dict[str, tuple[int, int]], config: dict[str, object], message: str
) -> None:
    halves = {}
    for name, shape in tensors.items():
        halves |= {f"{name}.lora_A.weight": low_rank(*shape), f"{name}.lora_B.weight": low_rank(128, shape[0])}
    folder = save_adapter(tmp_path / "adapter", halves, **config)
    with pytest.raises(UsageError) as caught:
        merge_adapter(base, str(folder))
    assert message in str(caught.value) and str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_half_an_adapter(tmp_path: Path, base: Any) -> None:
    folder = save_adapter(tmp_path / "adapter", {f"{QUERY}.lora_A.weight": low_rank(RANK, 128)})
    with pytest.raises(CatpError, match=r"has no .*lora_B\.weight beside it"):
        merge_adapter(base, str(folder))
    (folder / "adapter_model.safetensors").write_bytes(b"1234")
    with pytest.raises(CatpError, match="weights are broken"):
        merge_adapter(base, str(folder))
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"has no adapter_model\.safetensors"):
        merge_adapter(base, str(folder))


def test_an_adapter_given_as_the_model(tmp_path: Path) -> None:
    folder = save_adapter(tmp_path / "adapter", {})
    with pytest.raises(UsageError, match="give the model that it was trained on, and --adapter"):
        load_checkpoint(str(folder))
