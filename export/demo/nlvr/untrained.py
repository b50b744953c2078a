"""The small model before training: the dense small BLIP's vision and question encoder, the latter's layers twinned."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, BlipForQuestionAnswering, PreTrainedTokenizerFast

from catp.export.demo import scenes
from catp.export.demo.nlvr.statements import WORDS
from catp.export.demo.vqa import DENSE
from catp.export.demo.vqa.untrained import CLS, DEC, PAD, SEP, SPECIAL
from catp.export.nlvr import BlipForNlvr2, BlipNlvr2Config

MERGE_FROM = 1
"""First of the three layers that merges what it read by a product of weights; in the official code half of them do."""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """`[CLS] statement [SEP]`, one token a word, lower case."""
    words = {*WORDS.split(), *" ".join(scenes.PLACES).split(), *scenes.COLORS, *scenes.SHAPES}
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


def make_model(tokenizer: PreTrainedTokenizerFast) -> BlipForNlvr2:
    """As the official code starts from a BLIP that was trained for other tasks.

    Both halves of a twin begin with the same weights, and words that the small BLIP knows with its embeddings.
    """
    known: Any = BlipForQuestionAnswering.from_pretrained(DENSE, dtype=torch.float32, attn_implementation="eager")
    text = {**known.config.text_config.to_dict(), "vocab_size": len(tokenizer)}
    text |= {"bos_token_id": DEC, "eos_token_id": SEP, "sep_token_id": SEP, "pad_token_id": PAD}
    vision = known.config.vision_config.to_dict()
    model: Any = BlipForNlvr2(BlipNlvr2Config(text_config=text, vision_config=vision, merge_from=MERGE_FROM))
    model.vision_model.load_state_dict(known.vision_model.state_dict())
    weights = model.text_encoder.state_dict()
    for name, value in known.text_encoder.state_dict().items():
        twins = [name]
        if ".crossattention.self." in name:
            twins = [name.replace(".self.", f".self{half}.") for half in (0, 1)]
        elif ".crossattention.output.dense." in name:
            twins = [name.replace(".dense.", f".dense{half}.") for half in (0, 1)]
        if not name.endswith("word_embeddings.weight"):
            for twin in twins:
                weights[twin].copy_(value)
    old = AutoTokenizer.from_pretrained(DENSE).get_vocab()
    embeddings = known.text_encoder.embeddings.word_embeddings.weight.detach()
    for word, number in tokenizer.get_vocab().items():
        if word in old:
            weights["embeddings.word_embeddings.weight"][number] = embeddings[old[word]]
    for layer in model.text_encoder.encoder.layer[MERGE_FROM:]:
        # A merge begins as the mean that it replaces.
        merge, width = layer.crossattention.output.merge_layer, text["hidden_size"]
        merge.weight.data.copy_(torch.eye(width).repeat(1, 2) / 2 + merge.weight.data)
    return model
