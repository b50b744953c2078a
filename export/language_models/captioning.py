"""BLIP's text decoder alone, which reads image tokens and writes a caption."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from catp.export.graphs import Graph, caption_decoder, image_keys
from catp.export.language_models.blip_decoder import BlipDecoder
from catp.runtime.bundle.chains import LanguageKind


class Captioning(BlipDecoder):
    """image_keys, which computes what cross-attention reads, and caption_decoder."""

    kind: LanguageKind = "captioning"
    accepts = "BLIP's own text decoder"
    parts = ("text_decoder",)
    writes, reader = "a caption", "text decoder"

    def graphs(self, lm: Any) -> Iterator[Graph]:
        yield image_keys.graph(lm.text_decoder)
        yield caption_decoder.graph(lm.text_decoder)
