"""BLIP's text encoder for NLVR2, which reads a statement and two images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from catp.export.graphs import Graph, statement_encoder
from catp.export.language_models.base import set_parameters
from catp.runtime.bundle.chains import LanguageKind
from catp.runtime.errors import UsageError


class TwoImages:
    """statement_encoder, head included."""

    kind: LanguageKind = "two-images"
    accepts = "none: BLIP's own text encoder reads a statement and both images"

    def check_config(self, config: Any, name: str) -> None:
        if not config.is_decoder:
            raise UsageError(
                f"model {name}: text_config.is_decoder in config.json is false, so its text encoder reads no image"
            )

    def check(self, lm: Any, name: str) -> None:
        pass

    def set_dtype(self, lm: Any, dtype: torch.dtype) -> None:
        for part in (lm.text_encoder, lm.cls_head):
            set_parameters(part, dtype)

    def graphs(self, lm: Any) -> Iterator[Graph]:
        yield statement_encoder.graph(lm)

    def max_positions(self, lm: Any) -> int | None:
        return lm.config.text_config.max_position_embeddings
