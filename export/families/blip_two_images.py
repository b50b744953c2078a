"""BLIP for NLVR2: two images, and whether a statement about them is true."""

from __future__ import annotations

from typing import Any

from catp.export.families.base import Family
from catp.export.nlvr import BlipForNlvr2


class BlipTwoImages(Family):
    """One vision encoder for both images; the text encoder reads the tokens of each by weights of their own."""

    title = "BLIP"
    model_type = "blip-nlvr2"
    name = "BLIP for statements about two images"
    votes = False
    images_per_text = 2
    placeholder = None

    def model_class(self) -> type[Any]:
        return BlipForNlvr2

    def language_model(self, model: Any) -> Any:
        """The model itself."""
        return model
