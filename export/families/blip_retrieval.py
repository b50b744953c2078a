"""BLIP for image-text retrieval: one vector for each text and picture, and a head that reads both at once."""

from __future__ import annotations

from typing import Any

from transformers import BlipForImageTextRetrieval

from catp.export.families.base import Family


class BlipRetrieval(Family):
    """No Q-Former, so no query tokens: the text encoder takes as many image tokens as there are."""

    title = "BLIP"
    model_type = "blip"
    name = "BLIP for image-text retrieval"
    votes = False
    placeholder = None

    def model_class(self) -> type[BlipForImageTextRetrieval]:
        return BlipForImageTextRetrieval

    def language_model(self, model: Any) -> Any:
        """The model itself: its text encoder, projections and head."""
        return model
