"""The sizes of a model that decide what it costs, read from a bundle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from catp.runtime.bundle.folder import Bundle
from catp.runtime.bundle.manifest import Manifest
from catp.runtime.errors import BundleError


@dataclass(frozen=True)
class VisionGeometry:
    """A vision transformer."""

    layers: int
    width: int
    feed_forward: int
    patch: int  # pixels, of a side
    patches: int  # of an image

    @property
    def tokens(self) -> int:
        """Patches and the class token."""
        return self.patches + 1


@dataclass(frozen=True)
class QFormerGeometry:
    """A Q-Former."""

    layers: int
    width: int
    feed_forward: int
    heads: int
    queries: int
    cross_every: int  # layers
    vocabulary: int = 0  # of prompts that it reads; 0: none
    positions: int = 0  # of these

    @property
    def cross_layers(self) -> int:
        """Layers that read the image: the first, and every `cross_every`-th after it."""
        return -(-self.layers // self.cross_every)


@dataclass(frozen=True)
class LanguageGeometry:
    """A decoder-only language model."""

    layers: int
    width: int
    feed_forward: int
    heads: int
    key_value_heads: int
    head_width: int
    vocabulary: int
    gated: bool  # three feed-forward matrices rather than two
    tied: bool  # the head is the embedding table
    positions: int  # rows of a table of learnt positions; 0 where there is none


@dataclass(frozen=True)
class EncoderDecoderGeometry:
    """An encoder-decoder language model as T5 is one: as many key-value heads as heads, no table of positions."""

    encoder_layers: int
    decoder_layers: int
    width: int
    feed_forward: int
    heads: int
    head_width: int
    vocabulary: int
    gated: bool  # three feed-forward matrices rather than two


@dataclass(frozen=True)
class AnsweringGeometry:
    """BLIP's text decoder, and where it answers questions its text encoder, which has the same sizes."""

    layers: int
    width: int
    feed_forward: int
    vocabulary: int
    positions: int


@dataclass(frozen=True)
class ScoringGeometry(AnsweringGeometry):
    """A text encoder whose texts are scored: BLIP's, CLIP's, or a Q-Former that reads texts."""

    vector: int  # length of the vectors that are compared; 0: none are
    merge_from: int | None  # first layer that merges what it read of two images by a product; None: it reads one


@dataclass(frozen=True)
class Geometry:
    """The whole model."""

    vision: VisionGeometry
    qformer: QFormerGeometry | None
    language: LanguageGeometry | EncoderDecoderGeometry | AnsweringGeometry


def read_geometry(bundle: Bundle) -> Geometry:
    """From the bundle's config.json, which is Hugging Face's.

    Raises:
        BundleError: it is missing, or is not a configuration of BLIP-2, BLIP or CLIP.
    """
    try:
        config = json.loads((bundle.path / "config.json").read_text())
        image = bundle.manifest.image
        return Geometry(
            _vision(config["vision_config"], image.height, image.width),
            _qformer(config["qformer_config"], bundle.manifest) if bundle.manifest.vote else None,
            _language(config["text_config"]) if bundle.manifest.writes_text else _scoring(config, bundle.manifest),
        )
    except (OSError, ValueError) as error:
        raise BundleError(f"bundle {bundle.path}: config.json can't be read ({error}); export it again") from None
    except (KeyError, TypeError) as error:
        raise BundleError(
            f"bundle {bundle.path}: config.json has no {error} as BLIP-2, BLIP or CLIP has; export it again"
        ) from None


def _vision(config: Mapping[str, Any], height: int, width: int) -> VisionGeometry:
    patch = config["patch_size"]
    return VisionGeometry(
        layers=config["num_hidden_layers"],
        width=config["hidden_size"],
        feed_forward=config["intermediate_size"],
        patch=patch,
        patches=(height // patch) * (width // patch),
    )


def _qformer(config: Mapping[str, Any], manifest: Manifest) -> QFormerGeometry:
    reads = manifest.reads_instruction
    return QFormerGeometry(
        layers=config["num_hidden_layers"],
        width=config["hidden_size"],
        feed_forward=config["intermediate_size"],
        heads=config["num_attention_heads"],
        queries=manifest.tokens,
        cross_every=config["cross_attention_frequency"],
        vocabulary=config["vocab_size"] if reads else 0,
        positions=config["max_position_embeddings"] if reads else 0,
    )


def _language(config: Mapping[str, Any]) -> LanguageGeometry | EncoderDecoderGeometry | AnsweringGeometry:
    if config["model_type"] == "blip_text_model":
        return AnsweringGeometry(
            layers=config["num_hidden_layers"],
            width=config["hidden_size"],
            feed_forward=config["intermediate_size"],
            vocabulary=config["vocab_size"],
            positions=config["max_position_embeddings"],
        )
    return _encoder_decoder(config) if config["model_type"] == "t5" else _decoder_only(config)


def _scoring(config: Mapping[str, Any], manifest: Manifest) -> ScoringGeometry:
    """Geometry of a Q-Former that reads texts, or of a text encoder."""
    text = config["qformer_config" if manifest.model.language == "none" else "text_config"]
    pairs = manifest.model.language == "two-images"
    return ScoringGeometry(
        layers=text["num_hidden_layers"],
        width=text["hidden_size"],
        feed_forward=text["intermediate_size"],
        vocabulary=text["vocab_size"],
        positions=text["max_position_embeddings"],
        vector=0 if pairs else int(manifest.tensor("text_embeds").shape[1]),
        merge_from=config["merge_from"] if pairs else None,
    )


def _decoder_only(config: Mapping[str, Any]) -> LanguageGeometry:
    heads, width = config["num_attention_heads"], config["hidden_size"]
    is_opt = config["model_type"] == "opt"
    return LanguageGeometry(
        layers=config["num_hidden_layers"],
        width=width,
        feed_forward=config["ffn_dim"] if is_opt else config["intermediate_size"],
        heads=heads,
        key_value_heads=config.get("num_key_value_heads") or heads,
        head_width=config.get("head_dim") or width // heads,
        vocabulary=config["vocab_size"],
        gated=not is_opt,
        tied=bool(config.get("tie_word_embeddings", is_opt)),
        positions=config["max_position_embeddings"] + 2 if is_opt else 0,  # OPT's table begins two rows early
    )


def _encoder_decoder(config: Mapping[str, Any]) -> EncoderDecoderGeometry:
    return EncoderDecoderGeometry(
        encoder_layers=config["num_layers"],
        decoder_layers=config.get("num_decoder_layers") or config["num_layers"],
        width=config["d_model"],
        feed_forward=config["d_ff"],
        heads=config["num_heads"],
        head_width=config["d_kv"],
        vocabulary=config["vocab_size"],
        gated=config["feed_forward_proj"].startswith("gated-"),
    )
