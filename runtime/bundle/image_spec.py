"""Settings by which a picture becomes `pixel_values`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from PIL import Image
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from catp.runtime.errors import UsageError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""BLIP's defaults."""

_SMALLEST, _LARGEST = 1e-12, 1e12
"""Divisors and factors that float32 can compute with, with room for pixels."""

_RANGE = f"from {_SMALLEST} to {_LARGEST}"
_ACCEPTED = {
    "height": "a number of pixels",
    "width": "a number of pixels",
    "shortest_edge": "a number of pixels, at least that of each side of crop_size",
    # Of a name, transformers makes bilinear resizing with Pillow, whichever it is, and other things with torchvision.
    "resample": "one of Pillow's numbers: 0 (nearest), 1 (lanczos), 2 (bilinear), 3 (bicubic), 4 (box), 5 (hamming)",
    "rescale_factor": f"a number {_RANGE}",
    "image_mean": f"a number, 0 or {_RANGE}, or one for each of three channels",
    "image_std": f"a number {_RANGE}, or one for each of three channels",
}

_Mean = Annotated[float, Field(ge=0)]  # of values that are not negative
_Deviation = Annotated[float, Field(gt=0)]


class ImageSpec(BaseModel):
    """How pixels become `pixel_values`; the names are those of `preprocessor_config.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    height: int = Field(gt=0)
    width: int = Field(gt=0)
    shortest_edge: int | None = Field(
        default=None, gt=0, description="its aspect is kept, its shorter side gets so many pixels; then a crop"
    )
    resample: int = Field(ge=0, le=5, description="PIL.Image.Resampling")
    do_rescale: bool = True
    rescale_factor: float = Field(default=1 / 255, gt=0)
    do_normalize: bool = True
    image_mean: tuple[_Mean, _Mean, _Mean]
    image_std: tuple[_Deviation, _Deviation, _Deviation]

    @model_validator(mode="after")
    def _crops(self) -> ImageSpec:
        if self.shortest_edge is not None and self.shortest_edge < max(self.height, self.width):
            raise ValueError(f"shortest_edge: {self.shortest_edge} pixels, and the crop is larger")
        return self

    @model_serializer(mode="wrap")
    def _without_absent(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A bundle whose pictures are only resized is one that older programs read, which know no such field."""
        fields: dict[str, Any] = serialize(self)
        if self.shortest_edge is None:
            fields.pop("shortest_edge", None)
        return fields

    @field_validator("image_mean", "image_std", "rescale_factor")
    @classmethod
    def _in_float32(cls, numbers: float | tuple[float, ...]) -> float | tuple[float, ...]:
        """Pixels are computed in it: a number that becomes infinite there, or a divisor that becomes 0, is none."""
        for number in numbers if isinstance(numbers, tuple) else (numbers,):
            if number and not _SMALLEST <= number <= _LARGEST:
                raise ValueError(f"{number!r} is not {_RANGE}")
        return numbers

    @classmethod
    def from_preprocessor_config(cls, config: Mapping[str, Any]) -> ImageSpec:
        """Read the settings of a `preprocessor_config.json`, as transformers' image processors do.

        A step that is null is off, and what it would need is not looked at.

        Raises:
            UsageError: the configuration asks for something that neither BLIP's nor CLIP's processors do (a crop after
                resizing to another aspect, padding, no resizing at all), or has a value that can't be used.
        """
        size = config.get("size", {"height": 384, "width": 384})
        if isinstance(size, int) and not isinstance(size, bool):
            size = {"height": size, "width": size}
        shortest = _cropped_from(config, size)
        if shortest is not None:
            crop = config["crop_size"]
            size = {**crop, "shortest_edge": shortest} if isinstance(crop, Mapping) else crop
        if not isinstance(size, Mapping) or not {"height", "width"} <= set(size):
            raise UsageError(
                f"preprocessor_config.json: size is {size}; accepted: height and width, or CLIP's shortest_edge with a "
                "center crop to height and width"
            )
        for flag in ("do_center_crop", "do_pad"):
            if config.get(flag) and (flag == "do_pad" or shortest is None):
                raise UsageError(
                    f"preprocessor_config.json: {flag} is set; accepted: resizing to height and width alone, or CLIP's "
                    "shortest_edge with a center crop"
                )
        if not config.get("do_resize", True):
            raise UsageError("preprocessor_config.json: do_resize is off; the vision encoder's input size is fixed")
        rescales, normalizes = (bool(config.get(flag, True)) for flag in ("do_rescale", "do_normalize"))
        settings = {
            "height": size["height"],
            "width": size["width"],
            "shortest_edge": shortest,
            "resample": config.get("resample", Image.Resampling.BICUBIC),
            "do_rescale": rescales,
            "rescale_factor": config.get("rescale_factor", 1 / 255) if rescales else 1 / 255,
            "do_normalize": normalizes,
            "image_mean": _for_channels(config.get("image_mean", CLIP_MEAN)) if normalizes else CLIP_MEAN,
            "image_std": _for_channels(config.get("image_std", CLIP_STD)) if normalizes else CLIP_STD,
        }
        if isinstance(settings["resample"], Image.Resampling):
            settings["resample"] = settings["resample"].value
        try:
            return cls.model_validate(settings, strict=True)  # no text is taken for a number, no name for its number
        except ValidationError as error:
            where = error.errors()[0]["loc"]
            name = str(where[0]) if where else "shortest_edge"  # the one that another setting contradicts
            value = repr(size[name] if name in size else config.get(name))[:100]
            raise UsageError(f"preprocessor_config.json: {name} is {value}; accepted: {_ACCEPTED[name]}") from None


def _cropped_from(config: Mapping[str, Any], size: Any) -> Any:
    """The shorter side before a center crop, as CLIP's processors have it; None: nothing is cropped."""
    if not isinstance(size, Mapping) or not config.get("do_center_crop"):
        return None
    return size["shortest_edge"] if set(size) == {"shortest_edge"} and "crop_size" in config else None


def _for_channels(number: Any) -> Any:
    """One number for all channels is three; of anything else its items."""
    if isinstance(number, int | float) and not isinstance(number, bool):
        return (number,) * 3
    return tuple(number) if isinstance(number, list | tuple) else number
