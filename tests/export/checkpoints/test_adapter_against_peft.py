"""Adapters that PEFT saves: merged, the model's logits are those of PEFT's; what is not merged is refused by name."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import Blip2ForConditionalGeneration

from catp.export.checkpoints.adapter import merge_adapter
from catp.export.demo import CHECKPOINT
from catp.runtime import UsageError

DECODER = "language_model.model.decoder"


def base() -> Any:
    return Blip2ForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()


def logits(model: Any) -> torch.Tensor:
    config = model.config
    ids = torch.tensor([[config.image_token_index] * config.num_query_tokens + [2, 17, 40, 81, 9]])
    pixels = torch.randn((1, 3, 96, 96), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return model(pixel_values=pixels, input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def trained(folder: Path, **settings: Any) -> Path:
    """An adapter as PEFT saves it after training has moved everything that it trains."""
    torch.manual_seed(5)
    model = get_peft_model(base(), LoraConfig(**{"r": 4, "lora_alpha": 12, **settings}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.15 * torch.randn_like(parameter))
            elif parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


ATTENTION = ["self_attn.q_proj", "self_attn.v_proj", "out_proj"]
CASES: dict[str, dict[str, Any]] = {
    "gaussian": {"target_modules": ["fc1", "qkv"], "init_lora_weights": "gaussian"},
    "orthogonal": {"target_modules": ["v_proj", "fc2"], "init_lora_weights": "orthogonal"},
    "mica": {"target_modules": ["v_proj", "out_proj"], "init_lora_weights": "mica"},
    "not initialised": {"target_modules": ["k_proj"], "init_lora_weights": False},
    "ranks and alphas by pattern": {
        "target_modules": ATTENTION,
        "use_rslora": True,
        "rank_pattern": {"layers.0.self_attn.q_proj": 7, r".*\.v_proj": 2, "v_proj": 3},
        "alpha_pattern": {"_proj": 90, r"decoder.layers.[01].self_attn.q_proj": 5, "q_proj": 50, "out_proj": 1},
    },
    "turned round in the file, not in a linear layer": {"target_modules": ["q_proj"], "fan_in_fan_out": True},
    "embeddings, a convolution": {"target_modules": ["embed_tokens", "patch_embedding", "fc1"], "use_rslora": True},
    "every bias": {"target_modules": ["q_proj"], "bias": "all"},
    "biases of what has matrices": {"target_modules": ["out_proj"], "bias": "lora_only"},
    "whole modules": {"target_modules": ["v_proj"], "modules_to_save": ["language_projection", "layernorm", "lm_head"]},
    "one layer": {"target_modules": ["fc1", "v_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
    "a regular expression": {"target_modules": r"language_model.*\.(q_proj|fc2)", "exclude_modules": ["1.fc2"]},
    "all linear layers": {"target_modules": "all-linear", "exclude_modules": r".*qformer.*"},
}


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_logits_are_those_of_peft(tmp_path: Path, settings: dict[str, Any]) -> None:
    folder = trained(tmp_path / "adapter", **settings)
    wanted = logits(PeftModel.from_pretrained(base(), folder).eval())
    merged = base()
    before = logits(merged)
    merge_adapter(merged, str(folder))
    assert (wanted - before).abs().max() > 0.1
    torch.testing.assert_close(logits(merged), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa'"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights 'pissa_niter_4'"),
        ({"init_lora_weights": "OLoRA"}, "init_lora_weights 'OLoRA'"),
        ({"init_lora_weights": "corda"}, "init_lora_weights 'corda'"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights 'loftq'"),
        ({"init_lora_weights": "lora_ga"}, "init_lora_weights 'lora_ga'"),
        ({"init_lora_weights": "of next year"}, "init_lora_weights 'of next year'"),
        ({"alora_invocation_tokens": [3, 4]}, "alora_invocation_tokens"),
        ({"use_dora": True, "lora_bias": True}, "lora_bias, use_dora"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
        ({"kasa_config": {"beta": 1e-4}}, "kasa_config"),
        ({"trainable_token_indices": {"embed_tokens": [7]}}, "trainable_token_indices"),
        ({"ensure_weight_tying": True}, "ensure_weight_tying"),
        ({"a_setting_of_next_year": {"on": True}}, "a_setting_of_next_year"),
        ({"peft_type": "LOKR"}, "peft_type 'LOKR'"),
    ],
)
def test_what_peft_computes_otherwise_is_refused(
    saved: Path, tmp_path: Path, settings: dict[str, Any], named: str
) -> None:
    message = refusal(saved, tmp_path, settings)
    assert named in message and "accepted: plain LoRA; where PEFT can merge it" in message


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"r": 5}, "its rank in adapter_config.json is 5"),
        ({"rank_pattern": {"1.self_attn.v_proj": 2}}, "its rank in adapter_config.json is 2"),
        ({"target_modules": ["q_proj"]}, "leaves out"),
        ({"exclude_modules": ["layers.0.self_attn.v_proj"]}, "leaves out"),
        ({"modules_to_save": ["self_attn"]}, "leaves out"),
        ({"layers_to_transform": 0}, "leaves out"),
        ({"r": "4"}, "is not one of PEFT's"),
        ({"r": 0}, "is not one of PEFT's"),
        ({"lora_alpha": float("nan")}, "is not one of PEFT's"),
        ({"alpha_pattern": {"(": 3}}, "is not one of PEFT's"),
        ({"alpha_pattern": ["v_proj"]}, "is not one of PEFT's"),
        ({"bias": "some"}, "is not one of PEFT's"),
    ],
)
def test_a_configuration_that_is_not_that_of_the_weights(
    saved: Path, tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    assert said in refusal(saved, tmp_path, settings)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("adapters") / "saved", target_modules=["v_proj"])


def refusal(saved: Path, tmp_path: Path, changes: dict[str, Any]) -> str:
    """What is said of an adapter whose configuration was changed after it was saved."""
    folder = Path(shutil.copytree(saved, tmp_path / "adapter"))
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(UsageError) as caught:
        merge_adapter(base(), str(folder))
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)
