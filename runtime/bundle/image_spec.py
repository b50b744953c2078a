"""Settings by which a picture becomes `pixel_values`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from catp.runtime.errors import UsageError


class ImageSpec(BaseModel):
    """How pixels become `pixel_values`; the names are those of `preprocessor_config.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    height: int = Field(gt=0)
    width: int = Field(gt=0)
    resample: int = Field(ge=0, le=5, description="PIL.Image.Resampling")
    do_rescale: bool = True
    rescale_factor: float = Field(default=1 / 255, gt=0)
    do_normalize: bool = True
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]

    @classmethod
    def from_preprocessor_config(cls, config: Mapping[str, Any]) -> ImageSpec:
        """Read the settings of a `preprocessor_config.json`.

        Raises:
            UsageError: the configuration asks for something BLIP-2 processors don't do (center crop,
                shortest-edge resizing, no resizing at all).
        """
        size = config.get("size") or {}
        if not {"height", "width"} <= set(size):
            raise UsageError(f"preprocessor_config.json: size is {size}; a BLIP-2 processor has height and width")
        for flag in ("do_center_crop", "do_pad"):
            if config.get(flag):
                raise UsageError(f"preprocessor_config.json: {flag} is set; BLIP-2 processors only resize")
        if config.get("do_resize") is False:
            raise UsageError("preprocessor_config.json: do_resize is false; the vision encoder's input size is fixed")
        return cls(
            height=size["height"],
            width=size["width"],
            resample=config.get("resample", Image.Resampling.BICUBIC),
            do_rescale=config.get("do_rescale", True),
            rescale_factor=config.get("rescale_factor", 1 / 255),
            do_normalize=config.get("do_normalize", True),
            image_mean=tuple(config["image_mean"]),
            image_std=tuple(config["image_std"]),
        )
