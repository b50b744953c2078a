"""Checkpoint folders made on the spot."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    AutoTokenizer,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    LlamaConfig,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from catp.export.demo import CHECKPOINT


def save_odd_checkpoint(folder: Path, seed: int = 3) -> Path:
    """24 queries, five Q-Former layers (three with cross-attention), other widths and heads, a Llama with GQA.

    Random weights attend almost uniformly, and then float noise decides the ranks; the spread here is large enough
    for the votes to mean something. Vision and queries default to zeros in transformers, so both are set too.
    """
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    config = Blip2Config(
        vision_config=Blip2VisionConfig(
            hidden_size=60, intermediate_size=112, num_hidden_layers=3, num_attention_heads=5,
            image_size=56, patch_size=8, initializer_range=0.1,
        ),
        qformer_config=Blip2QFormerConfig(
            vocab_size=64, hidden_size=48, intermediate_size=80, num_hidden_layers=5, num_attention_heads=6,
            cross_attention_frequency=2, encoder_hidden_size=60, initializer_range=0.4,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=40, intermediate_size=72, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=2, head_dim=12, max_position_embeddings=96,
            initializer_range=0.2, tie_word_embeddings=False, bos_token_id=2, eos_token_id=2, pad_token_id=1,
        ),
        num_query_tokens=24,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        initializer_range=0.1,
    )  # fmt: skip
    model = Blip2ForConditionalGeneration(config)
    with torch.no_grad():
        model.query_tokens.normal_(0, 1)
        model.vision_model.embeddings.position_embedding.normal_(0, 0.5)
        for layer in model.qformer.encoder.layer:
            if layer.has_cross_attention:
                for part in (layer.crossattention.attention.query, layer.crossattention.attention.key):
                    part.weight.normal_(0, 0.4)
    model.save_pretrained(folder)
    processor = Blip2Processor(BlipImageProcessorPil(size={"height": 56, "width": 56}), tokenizer, num_query_tokens=24)
    processor.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    return folder
