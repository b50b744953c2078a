"""Checkpoint folders made on the spot: tiny, random, and of shapes unlike the demo's and each other's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoTokenizer,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    Blip2Processor,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    BlipProcessor,
    CLIPConfig,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    InstructBlipVideoConfig,
    InstructBlipVideoForConditionalGeneration,
    LlamaConfig,
    PreTrainedTokenizerFast,
    T5Config,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from catp.export.demo import CHECKPOINT, scenes
from catp.export.nlvr import BlipForNlvr2, BlipNlvr2Config

PAD, EOS = 1, 2  # in the demo's tokenizer
QUERIES = 24

VISION: dict[str, Any] = {
    "hidden_size": 60, "intermediate_size": 112, "num_hidden_layers": 3, "num_attention_heads": 5,
    "image_size": 56, "patch_size": 8, "initializer_range": 0.1,
}  # fmt: skip
QFORMER: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 5, "num_attention_heads": 6,
    "cross_attention_frequency": 2, "encoder_hidden_size": 60, "initializer_range": 0.4,
}  # fmt: skip
"""Five layers, three of them with cross-attention."""

FEWER: dict[str, Any] = {
    "vision_config": {**VISION, "num_hidden_layers": 1},
    "qformer_config": {**QFORMER, "num_hidden_layers": 3, "initializer_range": 0.25},
}
"""Of the families after the first: what every layer is like is known by then. An instruction multiplies rounding."""

FEWEST: dict[str, Any] = {**FEWER, "qformer_config": {**FEWER["qformer_config"], "num_hidden_layers": 1}}
"""Of models of videos, whose graphs are InstructBLIP's."""


def llama(vocabulary: int) -> LlamaConfig:
    """With grouped queries, and heads whose widths don't add up to the hidden size."""
    return LlamaConfig(
        vocab_size=vocabulary, hidden_size=40, intermediate_size=72, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, head_dim=12, max_position_embeddings=96,
        initializer_range=0.2, tie_word_embeddings=False, bos_token_id=EOS, eos_token_id=EOS, pad_token_id=PAD,
    )  # fmt: skip


def flan_t5(vocabulary: int) -> T5Config:
    """Gated as Flan-T5, deeper as a decoder than as an encoder; sequences reach beyond the largest distance."""
    return T5Config(
        vocab_size=vocabulary, d_model=36, d_kv=10, d_ff=52, num_layers=1, num_decoder_layers=2, num_heads=3,
        relative_attention_num_buckets=10, relative_attention_max_distance=20, feed_forward_proj="gated-gelu",
        tie_word_embeddings=False, pad_token_id=PAD, eos_token_id=EOS, decoder_start_token_id=PAD,
    )  # fmt: skip


def save_odd_checkpoint(folder: Path, seed: int = 3) -> Path:
    """BLIP-2 with 24 queries and a Llama."""
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    config = Blip2Config(
        vision_config=VISION, qformer_config=QFORMER, text_config=llama(len(tokenizer)).to_dict(), **whole(tokenizer)
    )
    return save(folder, Blip2ForConditionalGeneration(config), tokenizer)


def save_gptj_checkpoint(folder: Path, model_type: str = "gptj", seed: int = 3) -> Path:
    """BLIP-2 with a GPT-J, or with CodeGen, which has the same settings: some of each head's width is rotated."""
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    text = AutoConfig.for_model(
        model_type, vocab_size=len(tokenizer), n_embd=40, n_layer=2, n_head=4, n_positions=96, n_ctx=96, rotary_dim=8,
        initializer_range=0.2, bos_token_id=EOS, eos_token_id=EOS, pad_token_id=PAD, tie_word_embeddings=False,
    )  # fmt: skip
    config = Blip2Config(text_config=text.to_dict(), **FEWER, **whole(tokenizer))
    return save(folder, Blip2ForConditionalGeneration(config), tokenizer)


def save_blip2_t5_checkpoint(folder: Path, seed: int = 3) -> Path:
    """BLIP-2 with a Flan-T5."""
    torch.manual_seed(seed)
    tokenizer = t5_tokenizer()
    config = Blip2Config(text_config=flan_t5(len(tokenizer)).to_dict(), **FEWER, **whole(tokenizer))
    model = Blip2ForConditionalGeneration(config)
    spread_distances(model.language_model)
    return save(folder, model, tokenizer)


def save_instructblip_checkpoint(folder: Path, seed: int = 3) -> Path:
    """InstructBLIP with a Llama, as Vicuna is one."""
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    config = InstructBlipConfig(text_config=llama(len(tokenizer)).to_dict(), **FEWER, **whole(tokenizer))
    return save(folder, InstructBlipForConditionalGeneration(config), tokenizer, qformer_tokenizer())


def save_instructblip_t5_checkpoint(folder: Path, seed: int = 3) -> Path:
    """InstructBLIP with a Flan-T5."""
    torch.manual_seed(seed)
    tokenizer = t5_tokenizer()
    config = InstructBlipConfig(text_config=flan_t5(len(tokenizer)).to_dict(), **FEWER, **whole(tokenizer))
    model = InstructBlipForConditionalGeneration(config)
    spread_distances(model.language_model)
    return save(folder, model, tokenizer, qformer_tokenizer())


def save_video_checkpoint(folder: Path, seed: int = 3) -> Path:
    """InstructBLIP on videos with a Llama that has positions for four frames."""
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    tokenizer.add_tokens(["<video>"], special_tokens=True)
    positions = 4 * QUERIES + 60
    text = {**llama(len(tokenizer)).to_dict(), "num_hidden_layers": 1, "max_position_embeddings": positions}
    config = InstructBlipVideoConfig(text_config=text, **FEWEST, **whole(tokenizer, "video"))
    return save_video(folder, InstructBlipVideoForConditionalGeneration(config), tokenizer)


def save_video_t5_checkpoint(folder: Path, seed: int = 3) -> Path:
    """InstructBLIP on videos with a Flan-T5."""
    torch.manual_seed(seed)
    tokenizer = t5_tokenizer()
    tokenizer.add_tokens(["<video>"], special_tokens=True)
    text = {**flan_t5(len(tokenizer)).to_dict(), "num_decoder_layers": 1}
    config = InstructBlipVideoConfig(text_config=text, **FEWEST, **whole(tokenizer, "video"))
    model = InstructBlipVideoForConditionalGeneration(config)
    spread_distances(model.language_model)
    return save_video(folder, model, tokenizer)


def save_video(folder: Path, model: Any, tokenizer: Any) -> Path:
    """What Hugging Face's processor of videos would save: it can't be made without torchvision."""
    peaked(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    qformer_tokenizer().save_pretrained(folder / "qformer_tokenizer")
    settings = BlipImageProcessorPil(size={"height": 56, "width": 56}).to_dict()
    del settings["image_processor_type"]
    settings["video_processor_type"] = "InstructBlipVideoVideoProcessor"
    (folder / "video_preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def save_retrieval_checkpoint(folder: Path, seed: int = 3) -> Path:
    """BLIP-2 for image-text retrieval: the Q-Former's words are BERT's, and no layer is like another."""
    torch.manual_seed(seed)
    tokenizer = qformer_tokenizer()
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    qformer = {**FEWER["qformer_config"], "vocab_size": len(tokenizer), "use_qformer_text_input": True}
    config = Blip2Config(
        vision_config=FEWER["vision_config"], qformer_config=qformer, image_text_hidden_size=20, **whole(tokenizer)
    )
    model = Blip2ForImageTextRetrieval(config)
    with torch.no_grad():
        model.itm_head.weight.normal_(0, 0.5)
    return save(folder, model, tokenizer)


def save_vqa_checkpoint(folder: Path, seed: int = 2) -> Path:
    """BLIP for question answering: two text models with words of their own, whose heads are not like the image's."""
    torch.manual_seed(seed)
    tokenizer = qformer_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]})
    config = BlipConfig(
        vision_config={**VISION, "num_hidden_layers": 2, "layer_norm_eps": 1e-6},
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 60, "intermediate_size": 80, "num_hidden_layers": 3,
            "num_attention_heads": 4, "max_position_embeddings": 64,
            "bos_token_id": tokenizer.bos_token_id, "sep_token_id": 3, "pad_token_id": 0, "eos_token_id": 2,
        },
    )  # fmt: skip
    model = BlipForQuestionAnswering(config)
    with torch.no_grad():
        model.vision_model.embeddings.position_embedding.normal_(0, 0.5)
        for name, parameter in (*model.text_encoder.named_parameters(), *model.text_decoder.named_parameters()):
            if parameter.ndim == 2:  # small where layers add to what they read: or else no word matters
                parameter.normal_(0, 0.1 if "dense" in name and "transform" not in name else 0.2)
        model.text_decoder.cls.predictions.bias[config.text_config.sep_token_id] = 2  # so that some answers end
    model.save_pretrained(folder)
    images = BlipImageProcessorPil(size={"height": 56, "width": 56})
    BlipProcessor(images, tokenizer).save_pretrained(folder)
    images.save_pretrained(folder)
    return folder


def save_caption_checkpoint(folder: Path, seed: int = 2) -> Path:
    """BLIP for captions: image tokens are wider than words."""
    torch.manual_seed(seed)
    tokenizer = qformer_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    config = BlipConfig(
        vision_config={**VISION, "num_hidden_layers": 2, "layer_norm_eps": 1e-6},
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 40, "intermediate_size": 72, "num_hidden_layers": 3,
            "num_attention_heads": 4, "max_position_embeddings": 64,
            "bos_token_id": tokenizer.bos_token_id, "sep_token_id": 3, "pad_token_id": 0, "eos_token_id": 2,
        },
    )  # fmt: skip
    model = BlipForConditionalGeneration(config)
    with torch.no_grad():
        model.vision_model.embeddings.position_embedding.normal_(0, 0.5)
        for name, parameter in model.text_decoder.named_parameters():
            if parameter.ndim == 2:  # small where layers add to what they read: or else no word matters
                parameter.normal_(0, 0.1 if "dense" in name and "transform" not in name else 0.25)
        model.text_decoder.cls.predictions.bias[config.text_config.sep_token_id] = 2  # so that some captions end
    model.save_pretrained(folder)
    images = BlipImageProcessorPil(size={"height": 56, "width": 56})
    BlipProcessor(images, tokenizer).save_pretrained(folder)
    images.save_pretrained(folder)
    return folder


def save_blip_retrieval_checkpoint(folder: Path, seed: int = 4) -> Path:
    """BLIP for image-text retrieval: texts of another width than images, and vectors of a third length."""
    torch.manual_seed(seed)
    tokenizer = qformer_tokenizer()
    config = BlipConfig(
        vision_config={**VISION, "num_hidden_layers": 3, "layer_norm_eps": 1e-6},
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2,
            "num_attention_heads": 4, "max_position_embeddings": 64, "encoder_hidden_size": 60,
            "bos_token_id": 2, "sep_token_id": 3, "pad_token_id": 0, "eos_token_id": 3,
        },
        image_text_hidden_size=20,
    )  # fmt: skip
    model = BlipForImageTextRetrieval(config)
    with torch.no_grad():
        model.vision_model.embeddings.position_embedding.normal_(0, 0.5)
        for name, parameter in model.text_encoder.named_parameters():
            if parameter.ndim == 2:  # small where layers add to what they read: or else no word matters
                parameter.normal_(0, 0.1 if "dense" in name else 0.2)
        for head in (model.itm_head, model.text_proj, model.vision_proj):
            head.weight.normal_(0, 0.5)
            head.bias.normal_(0, 0.5)
    model.save_pretrained(folder)
    images = BlipImageProcessorPil(size={"height": 56, "width": 56})
    BlipProcessor(images, tokenizer).save_pretrained(folder)
    images.save_pretrained(folder)
    return folder


def save_clip_checkpoint(folder: Path, seed: int = 5) -> Path:
    """CLIP: an encoder for texts that is wider and shallower than the one for images; pictures are cropped."""
    torch.manual_seed(seed)
    tokenizer = clip_tokenizer()
    model = CLIPModel(clip_config(tokenizer))
    with torch.no_grad():
        for part in (model.vision_model, model.text_model):
            for name, parameter in part.named_parameters():
                if parameter.ndim == 2:
                    parameter.normal_(0, 0.5 if "position" in name else 0.15)
        model.logit_scale.fill_(3.1)
    model.save_pretrained(folder)
    images = CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    images.save_pretrained(folder)
    return folder


def clip_config(tokenizer: Any, eos_token_id: int | None = None) -> CLIPConfig:
    """Args: `eos_token_id`: as configured; None: the tokenizer's."""
    return CLIPConfig(
        vision_config={**VISION, "num_hidden_layers": 3, "projection_dim": 24},
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 72, "num_hidden_layers": 2,
            "num_attention_heads": 4, "max_position_embeddings": 77, "projection_dim": 24,
            "bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id if eos_token_id is None else eos_token_id,
        },
        projection_dim=24,
    )  # fmt: skip


def clip_tokenizer() -> Any:
    """Letters, some of which are merged, in bytes as CLIP's; the token that ends a text is the last, and pads it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("i", "n"), ("r", "e"), ("t", "h"), ("th", "e</w>"), ("re", "d</w>"), ("i", "s</w>")]
    pieces = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *("".join(pair) for pair in merges)]
    vocabulary = {piece: place for place, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges)


def save_nlvr_checkpoint(folder: Path, seed: int = 2) -> Path:
    """BLIP for statements about two images: text tokens narrower than the images', merged from the second layer on."""
    torch.manual_seed(seed)
    tokenizer = qformer_tokenizer()
    config = BlipNlvr2Config(
        vision_config={**VISION, "num_hidden_layers": 2, "layer_norm_eps": 1e-6},
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 44, "intermediate_size": 80, "num_hidden_layers": 3,
            "num_attention_heads": 4, "max_position_embeddings": 64,
            "bos_token_id": None, "sep_token_id": 3, "pad_token_id": 0, "eos_token_id": 3,
        },
        merge_from=1,
    )  # fmt: skip
    model = BlipForNlvr2(config)
    with torch.no_grad():
        model.vision_model.embeddings.position_embedding.normal_(0, 0.5)
        for name, parameter in (*model.text_encoder.named_parameters(), *model.cls_head.named_parameters()):
            if parameter.ndim == 2:
                parameter.normal_(0, 0.1 if ".output.dense." in name else 0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    BlipImageProcessorPil(size={"height": 56, "width": 56}).save_pretrained(folder)
    return folder


def t5_tokenizer() -> Any:
    """The demo's words with T5's ending: `</s>` after every text."""
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A $B </s>", special_tokens=[("</s>", EOS)]
    )
    return tokenizer


def qformer_tokenizer() -> Any:
    """Word pieces in lower case between [CLS] and [SEP], as BERT's.

    Its vocabulary is not trained: of pieces that are equally frequent, the library's trainer takes another in each run.
    """
    splits = pre_tokenizers.BertPreTokenizer()
    prompts = [e.question.prompt.lower() for e in scenes.examples(64, seed=1)]
    words = sorted({word for prompt in prompts for word, _ in splits.pre_tokenize_str(prompt)})
    letters = sorted(set("".join(words)))
    # Every third word is one piece; the rest are taken apart.
    pieces = [*letters, *(f"##{letter}" for letter in letters), *words[::3]]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = dict.fromkeys([*special, *pieces])
    assert len(vocabulary) <= QFORMER["vocab_size"]
    model = models.WordPiece({piece: place for place, piece in enumerate(vocabulary)}, unk_token="[UNK]")
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens(special)
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = splits
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")


@torch.no_grad()
def spread_distances(lm: Any) -> None:
    """Let T5 care about distances, and say something else than the token before: its head is its embedding table."""
    for stack in (lm.encoder, lm.decoder):
        stack.block[0].layer[0].SelfAttention.relative_attention_bias.weight.normal_(0, 2)
        for block in stack.block:
            for name, parameter in block.named_parameters():
                if parameter.ndim == 2 and "bias" not in name:
                    parameter.normal_(0, 0.3 if name.endswith(("q.weight", "k.weight")) else 0.5)


def whole(tokenizer: Any, sees: str = "image") -> dict[str, Any]:
    """What configures the model as a whole."""
    return {
        "num_query_tokens": QUERIES,
        f"{sees}_token_index": tokenizer.convert_tokens_to_ids(f"<{sees}>"),
        "initializer_range": 0.1,
    }


@torch.no_grad()
def peaked(model: Any) -> None:
    """Random weights that mean something.

    They attend almost uniformly, and then float noise decides the ranks: the spread here is large enough for the votes
    to mean something. Vision and queries default to zeros in transformers, so both are set too.
    """
    model.query_tokens.normal_(0, 1)
    model.vision_model.embeddings.position_embedding.normal_(0, 0.5)
    for layer in model.qformer.encoder.layer:
        if layer.has_cross_attention:
            for part in (layer.crossattention.attention.query, layer.crossattention.attention.key):
                part.weight.normal_(0, 0.4)


def save(folder: Path, model: Any, tokenizer: Any, instruction_tokenizer: Any = None) -> Path:
    """The model with the processor that Hugging Face gives its family."""
    peaked(model)
    model.save_pretrained(folder)
    images = BlipImageProcessorPil(size={"height": 56, "width": 56})
    processor: Any
    if instruction_tokenizer is None:
        processor = Blip2Processor(images, tokenizer, num_query_tokens=QUERIES)
    else:
        processor = InstructBlipProcessor(images, tokenizer, instruction_tokenizer, num_query_tokens=QUERIES)
    processor.save_pretrained(folder)
    images.save_pretrained(folder)
    return folder
