"""Images: files to upright RGB pictures, and pictures to the vision encoder's `pixel_values`.

Preprocessing follows Hugging Face's PIL image processors (resize on 8-bit pixels, rescale, normalise), so
that a bundle sees the pixels its checkpoint was trained on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence

import numpy as np
from PIL import Image, ImageOps

from catp.runtime.bundle.image_spec import ImageSpec
from catp.runtime.errors import ImageError
from catp.runtime.inputs.image_files import ImageSource, identity_of, opened

MAX_PIXELS = 100_000_000
"""Larger pictures are refused from their header, before a byte of pixels is decoded (decompression bombs)."""

MAX_ASPECT = 500
"""A picture more stretched than this has nothing left to see at the encoder's square input."""

ANIMATIONS = ("GIF", "WEBP", "PNG", "AVIF", "FLI")
"""Formats whose further pictures are frames; those of others are pages, previews or layers."""


def load_image(
    source: ImageSource, formats: Collection[str] | None = None, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """An upright 8-bit RGB picture.

    EXIF rotation is applied, transparency is laid on white, 16-bit greys are scaled (not clipped) to 8 bits,
    and palettes, greyscale and CMYK are converted.

    Args:
        source: a file, an open one, its bytes, a PIL image, or a uint8 array [H, W, 3] or [H, W].
        formats: Pillow's names of those that a file may have; None: all.
        max_pixels: a larger picture is refused from its header.

    Raises:
        ImageError: it is none of these, missing, empty, not an image, truncated, larger than `max_pixels`, or an
            animation.
    """
    with opened(source, formats) as (image, name):
        _check_size(image, name, max_pixels)
        if is_animation(image):
            raise ImageError(
                f"image {name}: it is an animation, and one picture is needed; give one of its frames, in Python such "
                "as image.convert('RGB')"
            )
        image.load()
    return _to_rgb(image, name)


def load_frames(source: ImageSource) -> list[Image.Image]:
    """The frames of an animation (GIF, WebP, ...), each as `load_image` gives a picture; a picture is its only frame.

    Raises:
        ImageError: as `load_image`; or all frames together have more than `MAX_PIXELS`.
    """
    with opened(source) as (image, name):
        _check_size(image, name)
        if is_animation(image):
            frames = image.n_frames  # type: ignore[attr-defined]
            width, height = image.size
            if frames * width * height > MAX_PIXELS:
                raise ImageError(
                    f"image {name}: refused, {frames} frames of {width} x {height} are more than {MAX_PIXELS:,} pixels"
                    "; give some of them, as files"
                )
            before, found = image.tell(), []
            for frame in range(frames):
                image.seek(frame)
                image.load()
                found.append(_to_rgb(image, name))
            image.seek(before)
            return found
        image.load()
    return [_to_rgb(image, name)]


def is_animation(image: Image.Image) -> bool:
    """Whether a picture is but the first of several that are shown one after another."""
    return image.format in ANIMATIONS and getattr(image, "is_animated", False)


def _check_size(image: Image.Image, name: str, max_pixels: int = MAX_PIXELS) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(f"image {name}: refused, {width} x {height} is more than {max_pixels:,} pixels")
    if min(width, height) == 0 or max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageError(f"image {name}: refused, {width} x {height} is stretched more than {MAX_ASPECT}:1")


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    with contextlib.suppress(Exception):  # broken EXIF data says nothing about the pixels; they are shown as they lie
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        # Pillow's own conversion clips at 255, which turns most 16-bit pictures white.
        values = np.nan_to_num(np.asarray(image).astype(np.float64), posinf=0.0, neginf=0.0)
        top = 65535.0 if image.mode.startswith("I") else max(float(values.max(initial=0.0)), 1.0)
        image = Image.fromarray(np.clip(values * (255.0 / top), 0, 255).round().astype(np.uint8))
    if image.mode == "La":  # what Pillow converts to nothing else
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    try:
        return image.convert("RGB")
    except ValueError:
        raise ImageError(f"image {name}: its mode {image.mode} has no colours known here; give it as RGB") from None


def resize(image: Image.Image, spec: ImageSpec) -> np.ndarray:
    """The pixels that the model sees, uint8 [H, W, 3], of an RGB picture of any size."""
    filter_ = Image.Resampling(spec.resample)
    if spec.shortest_edge is None:
        return np.asarray(image.resize((spec.width, spec.height), filter_))
    width, height = image.size
    longer = int(spec.shortest_edge * max(width, height) / min(width, height))
    whole = (spec.shortest_edge, longer) if width <= height else (longer, spec.shortest_edge)
    if whole[0] * whole[1] > MAX_PIXELS:
        raise ImageError(f"image of {width} x {height}: refused, resized it would have more than {MAX_PIXELS:,} pixels")
    left, top = (whole[0] - spec.width) // 2, (whole[1] - spec.height) // 2
    resized = image.resize(whole, filter_)
    return np.asarray(resized.crop((left, top, left + spec.width, top + spec.height)))


def load_and_preprocess(sources: Sequence[ImageSource], spec: ImageSpec) -> np.ndarray:
    """pixel_values float32 [B, 3, height, width], of files and whatever else `load_image` reads."""
    # Each source once: what comes through a pipe can't be read again.
    pictures = {key: load_image(source) for key, source in {identity_of(each): each for each in sources}.items()}
    return preprocess([pictures[identity_of(source)] for source in sources], spec)


def preprocess(images: Sequence[Image.Image], spec: ImageSpec) -> np.ndarray:
    """`pixel_values` float32 [B, 3, H, W] of RGB pictures of any size."""
    batch = np.empty((len(images), 3, spec.height, spec.width), np.float32)
    # One multiply and one add a pixel: (x * rescale - mean) / std.
    scale: np.ndarray = np.full((3, 1, 1), spec.rescale_factor if spec.do_rescale else 1.0, np.float32)
    shift: np.ndarray = np.zeros((3, 1, 1), np.float32)
    if spec.do_normalize:
        mean, std = (np.array(values, np.float32).reshape(3, 1, 1) for values in (spec.image_mean, spec.image_std))
        scale, shift = scale / std, -mean / std
    for row, image in zip(batch, images):
        # Into place channel by channel: whole pictures in between, and their transpose, cost six times as much.
        np.multiply(resize(image, spec).transpose(2, 0, 1), scale, out=row)
        row += shift
    return batch
