"""Checkpoint folders made on the spot: tiny, random, and of shapes unlike the demo's and each other's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import processors
from transformers import (
    AutoTokenizer,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    LlamaConfig,
    T5Config,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from catp.export.demo import CHECKPOINT

PAD, EOS = 1, 2  # in the demo's tokenizer
QUERIES = 24

VISION: dict[str, Any] = dict(
    hidden_size=60, intermediate_size=112, num_hidden_layers=3, num_attention_heads=5,
    image_size=56, patch_size=8, initializer_range=0.1,
)  # fmt: skip
QFORMER: dict[str, Any] = dict(
    vocab_size=64, hidden_size=48, intermediate_size=80, num_hidden_layers=5, num_attention_heads=6,
    cross_attention_frequency=2, encoder_hidden_size=60, initializer_range=0.4,
)  # fmt: skip
"""Five layers, three of them with cross-attention."""


def llama(vocabulary: int) -> LlamaConfig:
    """With grouped queries, and heads whose widths don't add up to the hidden size."""
    return LlamaConfig(
        vocab_size=vocabulary, hidden_size=40, intermediate_size=72, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, head_dim=12, max_position_embeddings=96,
        initializer_range=0.2, tie_word_embeddings=False, bos_token_id=EOS, eos_token_id=EOS, pad_token_id=PAD,
    )  # fmt: skip


def flan_t5(vocabulary: int) -> T5Config:
    """Gated and untied as Flan-T5, deeper as a decoder than as an encoder; prompts reach beyond the largest distance."""
    return T5Config(
        vocab_size=vocabulary, d_model=36, d_kv=10, d_ff=52, num_layers=2, num_decoder_layers=3, num_heads=3,
        relative_attention_num_buckets=10, relative_attention_max_distance=20, feed_forward_proj="gated-gelu",
        tie_word_embeddings=False, pad_token_id=PAD, eos_token_id=EOS, decoder_start_token_id=PAD,
    )  # fmt: skip


def save_odd_checkpoint(folder: Path, seed: int = 3) -> Path:
    """BLIP-2 with 24 queries and a Llama."""
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    return _save(folder, Blip2ForConditionalGeneration(_blip2(llama(len(tokenizer)), tokenizer)), tokenizer)


def save_blip2_t5_checkpoint(folder: Path, seed: int = 3) -> Path:
    """BLIP-2 with 24 queries and a Flan-T5."""
    torch.manual_seed(seed)
    tokenizer = t5_tokenizer()
    model = Blip2ForConditionalGeneration(_blip2(flan_t5(len(tokenizer)), tokenizer))
    spread_distances(model.language_model)
    return _save(folder, model, tokenizer)


def t5_tokenizer() -> Any:
    """The demo's words with T5's ending: `</s>` after every text."""
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A $B </s>", special_tokens=[("</s>", EOS)]
    )
    return tokenizer


@torch.no_grad()
def spread_distances(lm: Any) -> None:
    """Let T5 care about distances, and say something else than the token before: its head is its embedding table."""
    for stack in (lm.encoder, lm.decoder):
        stack.block[0].layer[0].SelfAttention.relative_attention_bias.weight.normal_(0, 2)
        for block in stack.block:
            for name, parameter in block.named_parameters():
                if parameter.ndim == 2 and "bias" not in name:
                    parameter.normal_(0, 0.3 if name.endswith(("q.weight", "k.weight")) else 0.5)


def _blip2(text: LlamaConfig | T5Config, tokenizer: Any) -> Blip2Config:
    return Blip2Config(
        vision_config=Blip2VisionConfig(**VISION),
        qformer_config=Blip2QFormerConfig(**QFORMER),
        text_config=text,
        num_query_tokens=QUERIES,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        initializer_range=0.1,
    )


@torch.no_grad()
def peaked(model: Any) -> None:
    """Random weights that mean something.

    They attend almost uniformly, and then float noise decides the ranks: the spread here is large enough for the votes to
    mean something. Vision and queries default to zeros in transformers, so both are set too.
    """
    model.query_tokens.normal_(0, 1)
    model.vision_model.embeddings.position_embedding.normal_(0, 0.5)
    for layer in model.qformer.encoder.layer:
        if layer.has_cross_attention:
            for part in (layer.crossattention.attention.query, layer.crossattention.attention.key):
                part.weight.normal_(0, 0.4)


def _save(folder: Path, model: Any, tokenizer: Any) -> Path:
    peaked(model)
    model.save_pretrained(folder)
    processor = Blip2Processor(
        BlipImageProcessorPil(size={"height": 56, "width": 56}), tokenizer, num_query_tokens=QUERIES
    )
    processor.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    return folder
