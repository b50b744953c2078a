"""The small BLIP before training: word-level tokenizer, image processor, and weights that start to learn."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BlipConfig, BlipForQuestionAnswering, BlipProcessor, PreTrainedTokenizerFast
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from catp.export.demo import scenes
from catp.export.demo.vqa import easy

IMAGE_SIZE = 96
PATCH_SIZE = 8
PATCHES = IMAGE_SIZE // PATCH_SIZE  # a side
WIDTH = 128

PAD, UNKNOWN, CLS, SEP, DEC = range(5)
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[DEC]")
"""As BLIP's official tokenizer has them; [DEC] begins and [SEP] ends an answer."""

WORDS = "what color is the shape in one where a of not no yes does image contain there present nothing ?"


def make_tokenizer() -> PreTrainedTokenizerFast:
    """`[CLS] question [SEP]`, one token a word, lower case: all words of both worlds."""
    words = {*WORDS.split(), *" ".join(scenes.PLACES).split()}
    words |= {*scenes.COLORS, *scenes.SHAPES, *easy.COLORS, *easy.SHAPES}
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        bos_token="[DEC]", model_max_length=32, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def make_processor() -> BlipProcessor:
    image_processor = BlipImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    return BlipProcessor(image_processor, make_tokenizer())


def make_config(vocabulary: int) -> BlipConfig:
    return BlipConfig(
        vision_config={
            "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 6, "num_attention_heads": 4,
            "image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE, "layer_norm_eps": 1e-6, "initializer_range": 0.02,
        },
        text_config={
            "vocab_size": vocabulary, "hidden_size": WIDTH, "encoder_hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH, "num_hidden_layers": 3, "num_attention_heads": 4,
            "max_position_embeddings": 32, "initializer_range": 0.02,
            "bos_token_id": DEC, "eos_token_id": SEP, "sep_token_id": SEP, "pad_token_id": PAD,
        },
    )  # fmt: skip


def make_model(vocabulary: int) -> BlipForQuestionAnswering:
    """Random weights: the vision encoder's as wide as their inputs ask, the text parts' as narrow as BERT's.

    With wide weights in the text parts the questions do not begin to be learnt; with narrow ones in the vision
    encoder its patches all look alike.
    """
    model = BlipForQuestionAnswering(make_config(vocabulary))
    with torch.no_grad():
        for module in model.vision_model.modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
                module.weight.normal_(0, module.weight[0].numel() ** -0.5)
        model.vision_model.embeddings.position_embedding.normal_(0, 0.5)
    return model
