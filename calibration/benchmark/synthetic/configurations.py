"""Hugging Face's configurations of the sizes, and tokenizers for them."""

from __future__ import annotations

from typing import Any

from catp.calibration.benchmark.contenders.described import RANDOM_WEIGHTS
from catp.calibration.benchmark.synthetic.sizes import (
    BLIP,
    CLIP,
    IMAGE_SIZE,
    PATCH,
    QUERIES,
    SIZES,
    BlipSizes,
    ClipSizes,
    Preset,
    Sizes,
)


def make_tokenizer(name: Preset) -> Any:
    """The demo's words, or the small BLIP's; of a CLIP bytes, some of which are merged: nothing is fetched."""
    from transformers import AutoTokenizer

    from catp.export.demo import CHECKPOINT, vqa

    if name in CLIP:
        return _clip_tokenizer()
    return AutoTokenizer.from_pretrained(vqa.CHECKPOINT if name in BLIP else CHECKPOINT)


def _clip_tokenizer() -> Any:
    """The token that ends a text is the last of the vocabulary, and pads it, as CLIP's."""
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges: Any = [("i", "n"), ("r", "e"), ("t", "h"), ("th", "e</w>"), ("i", "s</w>")]
    pieces = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *("".join(pair) for pair in merges)]
    vocabulary = {piece: place for place, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges)


def make_config(name: Preset, tokenizer: Any) -> Any:
    """The configuration, which says that its weights are random, with the class that it is for in `architectures`."""
    if name in BLIP:
        config = _blip_config(BLIP[name], tokenizer)
    elif name in CLIP:
        config = _clip_config(CLIP[name], tokenizer)
    else:
        config = _blip2_config(name, tokenizer)
    setattr(config, RANDOM_WEIGHTS, True)
    return config


def _blip_config(sizes: BlipSizes, tokenizer: Any) -> Any:
    from transformers import BlipConfig

    from catp.export.nlvr import BlipNlvr2Config

    vision, text = sizes.vision, sizes.text
    kind = BlipNlvr2Config if sizes.architecture == "BlipForNlvr2" else BlipConfig
    config = kind(
        vision_config={
            "hidden_size": vision.width, "intermediate_size": vision.feed_forward, "num_hidden_layers": vision.layers,
            "num_attention_heads": vision.heads, "image_size": sizes.side, "patch_size": sizes.patch,
            "layer_norm_eps": 1e-6,
        },
        text_config={
            "vocab_size": sizes.vocabulary, "hidden_size": text.width, "intermediate_size": text.feed_forward,
            "num_hidden_layers": text.layers, "num_attention_heads": text.heads, "encoder_hidden_size": vision.width,
            "max_position_embeddings": sizes.positions, "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.sep_token_id, "sep_token_id": tokenizer.sep_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
    )  # fmt: skip
    config.architectures = [sizes.architecture]
    return config


def _clip_config(sizes: ClipSizes, tokenizer: Any) -> Any:
    from transformers import CLIPConfig

    vision, text = sizes.vision, sizes.text
    config = CLIPConfig(
        vision_config={
            "hidden_size": vision.width, "intermediate_size": vision.feed_forward, "num_hidden_layers": vision.layers,
            "num_attention_heads": vision.heads, "image_size": sizes.side, "patch_size": sizes.patch,
            "projection_dim": sizes.vector,
        },
        text_config={
            "vocab_size": sizes.vocabulary, "hidden_size": text.width, "intermediate_size": text.feed_forward,
            "num_hidden_layers": text.layers, "num_attention_heads": text.heads, "projection_dim": sizes.vector,
            "max_position_embeddings": sizes.positions, "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
        },
        projection_dim=sizes.vector,
    )  # fmt: skip
    config.architectures = ["CLIPModel"]
    return config


def _blip2_config(name: Preset, tokenizer: Any) -> Any:
    from transformers import Blip2Config, Blip2QFormerConfig, Blip2VisionConfig

    from catp.export.demo import untrained

    if name == "tiny":
        config = untrained.make_config(tokenizer)
    else:
        sizes = SIZES[name]
        vision, qformer = sizes.vision, sizes.qformer
        config = Blip2Config(
            vision_config=Blip2VisionConfig(
                hidden_size=vision.width, intermediate_size=vision.feed_forward, num_hidden_layers=vision.layers,
                num_attention_heads=vision.heads, image_size=IMAGE_SIZE, patch_size=PATCH, initializer_range=0.02,
            ),
            qformer_config=Blip2QFormerConfig(
                vocab_size=len(tokenizer), hidden_size=qformer.width, intermediate_size=qformer.feed_forward,
                num_hidden_layers=qformer.layers, num_attention_heads=qformer.heads, cross_attention_frequency=2,
                encoder_hidden_size=vision.width,
            ),
            text_config=_flan_t5(sizes) if sizes.flan_t5 else _opt(sizes),
            num_query_tokens=QUERIES,
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        )  # fmt: skip
    config.architectures = ["Blip2ForConditionalGeneration"]  # by which other programs know what it is for
    return config


def _opt(sizes: Sizes) -> Any:
    from transformers import OPTConfig

    from catp.export.demo.untrained import EOS, PAD

    language = sizes.language
    return OPTConfig(
        vocab_size=sizes.vocabulary, hidden_size=language.width, word_embed_proj_dim=language.width,
        ffn_dim=language.feed_forward, num_hidden_layers=language.layers, num_attention_heads=language.heads,
        max_position_embeddings=sizes.positions, bos_token_id=EOS, eos_token_id=EOS, pad_token_id=PAD,
    )  # fmt: skip


def _flan_t5(sizes: Sizes) -> Any:
    from transformers import AutoConfig

    from catp.export.demo.untrained import EOS, PAD

    language = sizes.language
    return AutoConfig.for_model(
        "t5", vocab_size=sizes.vocabulary, d_model=language.width, d_kv=language.width // language.heads,
        d_ff=language.feed_forward, num_layers=language.layers, num_heads=language.heads,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False,
        pad_token_id=PAD, eos_token_id=EOS, decoder_start_token_id=PAD,
    )  # fmt: skip
