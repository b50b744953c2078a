"""Which decoder-only language models are refused by name, before a graph of them could be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoints import save_gptj_checkpoint
from transformers import AutoConfig, AutoModelForCausalLM

from catp.export.exporter import export_bundle
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


@pytest.mark.heavy  # exports like OPT's and Llama's, which every test run makes
@pytest.mark.parametrize("model_type", ["gptj", "codegen"])
def test_attention_that_became_the_library_s_own_passes_every_check(tmp_path: Path, model_type: str) -> None:
    """GPT-J and CodeGen, which brought attention of their own before transformers 5.24."""
    checkpoint = save_gptj_checkpoint(tmp_path / "checkpoint", model_type)
    bundle = export_bundle(str(checkpoint), tmp_path / "bundle", ratio=0.3)
    assert {check.subject for check in bundle.manifest.parity} >= set(bundle.manifest.graphs)
    assert all(check.passed for check in bundle.manifest.parity)


@pytest.mark.parametrize(
    "model_type", ["opt", "llama", "gpt2", "gptj", "codegen", "gpt_neox", "qwen2", "phi3", "gemma"]
)
def test_what_can_be_expressed_is_let_through(model_type: str) -> None:
    part = DecoderOnly()
    config = AutoConfig.for_model(model_type, **SMALL, bos_token_id=1, eos_token_id=1, pad_token_id=0)
    part.check_config(config, "mine")
    part.check(AutoModelForCausalLM.from_config(config), "mine")
