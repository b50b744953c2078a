"""CLIP: one vector for each text and picture."""

from __future__ import annotations

import math
from typing import Any

from transformers import CLIPModel

from catp.export.families.base import Family
from catp.runtime.errors import UsageError
from catp.runtime.limits import LOGIT_SCALE


class Clip(Family):
    """Two encoders that meet in the end, of other widths if need be."""

    title = "CLIP"
    model_type = "clip"
    name = "CLIP"
    votes = False
    placeholder = None

    def model_class(self) -> type[CLIPModel]:
        return CLIPModel

    def language_model(self, model: Any) -> Any:
        """The model itself: its text encoder and projections."""
        return model

    def word_embeddings(self, model: Any) -> Any:
        return model.text_model.embeddings.token_embedding

    def logit_scale(self, model: Any) -> float:
        found = math.exp(min(float(model.logit_scale.detach()), 700.0))
        if not 0 < found <= LOGIT_SCALE:
            raise UsageError(
                f"model {model.config.name_or_path}: its logit_scale is e to the {float(model.logit_scale):g}; "
                f"accepted: a factor up to {LOGIT_SCALE:g}"
            )
        return found
