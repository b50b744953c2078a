"""The demo model before training: tokenizer, processor, and weights whose queries start distinct."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from catp.export.demo import scenes

IMAGE_SIZE = 96
QUERIES = 32
PAD, EOS = 1, 2  # as OPT numbers them; EOS also begins every prompt


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE like OPT's, with `</s>` before every text, learned from the demo's own questions."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (f"{e.question.prompt} {e.question.answer}" for e in scenes.examples(4000, seed=1, split="train"))
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="</s> $A", pair="</s> $A $B", special_tokens=[("</s>", EOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="</s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        padding_side="left",
    )  # fmt: skip


def make_processor() -> Blip2Processor:
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([AddedToken("<image>", normalized=False, special=True)], special_tokens=True)
    return Blip2Processor(BlipImageProcessorPil(size=size), tokenizer, num_query_tokens=QUERIES)


def make_config(tokenizer: Any) -> Blip2Config:
    """The demo's sizes."""
    return Blip2Config(
        vision_config=Blip2VisionConfig(
            hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
            image_size=IMAGE_SIZE, patch_size=16, initializer_range=0.02,
        ),
        qformer_config=Blip2QFormerConfig(
            vocab_size=len(tokenizer), hidden_size=128, intermediate_size=512, num_hidden_layers=4,
            num_attention_heads=4, cross_attention_frequency=2, encoder_hidden_size=128,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        ),
        text_config=OPTConfig(
            vocab_size=len(tokenizer), hidden_size=128, word_embed_proj_dim=128, ffn_dim=512, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=256, dropout=0.0,
            bos_token_id=EOS, eos_token_id=EOS, pad_token_id=PAD,
        ),
        num_query_tokens=QUERIES,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip


def make_model(processor: Blip2Processor) -> Blip2ForConditionalGeneration:
    """An untrained model whose queries start, and can stay, distinct."""
    model = Blip2ForConditionalGeneration(make_config(processor.tokenizer))
    spread_weights(model)
    return model


def spread_weights(model: Blip2ForConditionalGeneration) -> None:
    """Random weights, drawn anew in place, with which a BLIP-2 with an OPT or a T5 tells its queries apart.

    As transformers initialises one, its queries are identical, its image embeddings nearly zero, its attention
    uniform: rounding would decide every vote.
    """
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
                module.weight.normal_(0, module.weight[0].numel() ** -0.5)
        # Strong identities at the input and weak mixing inside: what keeps the queries apart.
        model.query_tokens.normal_(0, 1)
        model.vision_model.embeddings.position_embedding.normal_(0, 1)
        if model.language_model.config.is_encoder_decoder:
            _spread_t5(model.language_model)
        else:
            # The language model's positions are weaker, of the size of its word embeddings: they must not drown them.
            model.language_model.model.decoder.embed_positions.weight.normal_(0, 0.1)
        for layer in model.qformer.encoder.layer:
            layer.attention.output.dense.weight.mul_(0.1)
            layer.output_query.dense.weight.mul_(0.3)
            if layer.has_cross_attention:
                layer.crossattention.attention.query.weight.mul_(2)
                layer.crossattention.attention.key.weight.mul_(2)


def _spread_t5(language_model: Any) -> None:
    """Let distances count. Attention is not scaled in T5, so its queries are."""
    for name, parameter in language_model.named_parameters():
        if name.endswith("relative_attention_bias.weight"):
            parameter.normal_(0, 1)
        elif name.endswith("Attention.q.weight"):
            parameter.mul_(language_model.config.d_kv**-0.5)
