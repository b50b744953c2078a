"""Which decoder-only language models are refused by name, before a graph of them could be wrong."""

from __future__ import annotations

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from catp.export.language_models import DecoderOnly
from catp.runtime.errors import UsageError

SMALL = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.mark.parametrize(
    ("model_type", "message"),
    [
        ("mistral", "uses sliding-window attention"),
        ("gemma2", "sliding_window in its configuration"),
        ("cohere", "scales its logits"),
        ("mixtral", "sends every token to experts"),
        ("falcon", "brings attention of its own"),
        ("bloom", "takes no position ids"),
    ],
)
def test_what_can_not_be_expressed_is_named(model_type: str, message: str) -> None:
    part = DecoderOnly()
    config = AutoConfig.for_model(model_type, **SMALL, bos_token_id=1, eos_token_id=1)
    with pytest.raises(UsageError, match=message) as caught:
        part.check_config(config, "mine")
        part.check(AutoModelForCausalLM.from_config(config), "mine")
    assert f"model mine: its language model '{model_type}'" in str(caught.value)


@pytest.mark.parametrize(
    "model_type", ["opt", "llama", "gpt2", "gptj", "codegen", "gpt_neox", "qwen2", "phi3", "gemma"]
)
def test_what_can_be_expressed_is_let_through(model_type: str) -> None:
    part = DecoderOnly()
    config = AutoConfig.for_model(model_type, **SMALL, bos_token_id=1, eos_token_id=1, pad_token_id=0)
    part.check_config(config, "mine")
    part.check(AutoModelForCausalLM.from_config(config), "mine")
