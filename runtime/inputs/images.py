"""Images: files to upright RGB pictures, and pictures to the vision encoder's `pixel_values`.

Preprocessing follows Hugging Face's PIL image processors (resize on 8-bit pixels, rescale, normalise), so
that a bundle sees the pixels its checkpoint was trained on.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from catp.runtime.bundle.image_spec import ImageSpec
from catp.runtime.errors import ImageError

MAX_PIXELS = 100_000_000
"""Larger pictures are refused from their header, before a byte of pixels is decoded (decompression bombs)."""

MAX_ASPECT = 500
"""A picture more stretched than this has nothing left to see at the encoder's square input."""

ImageSource = str | os.PathLike[str] | Image.Image


def load_image(source: ImageSource) -> Image.Image:
    """An upright 8-bit RGB picture from a file or a PIL image.

    EXIF rotation is applied, transparency is laid on white, 16-bit greys are scaled (not clipped) to 8 bits,
    and palettes, greyscale and CMYK are converted.

    Raises:
        ImageError: the file is missing, empty, not an image, truncated, or larger than `MAX_PIXELS`.
    """
    if isinstance(source, Image.Image):
        _check_size(source, "given as an object")
        return _to_rgb(source)
    path = Path(source)
    try:
        if path.is_dir():
            raise ImageError(f"image {path}: it is a folder; give a file")
        if path.exists() and not path.is_file():
            raise ImageError(f"image {path}: it is a device or a pipe; give a regular file")
        if path.stat().st_size == 0:
            raise ImageError(f"image {path}: the file is empty")
    except (OSError, ValueError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else f"can't be opened ({error})"
        raise ImageError(f"image {str(path)[:200]}: {reason}") from None
    try:
        with warnings.catch_warnings():
            # Pillow warns at a threshold of its own; ours is checked below, before anything is decoded.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                _check_size(image, path)
                image.load()
                return _to_rgb(image)
    except UnidentifiedImageError:
        raise ImageError(f"image {path}: not an image Pillow can read (PNG, JPEG, WebP, TIFF, BMP, GIF, ...)") from None
    except Image.DecompressionBombError:
        raise ImageError(f"image {path}: refused, more than {MAX_PIXELS:,} pixels") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # what Pillow's decoders raise on broken data
        raise ImageError(f"image {path}: broken or truncated ({error})") from None


def _check_size(image: Image.Image, path: Path | str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(f"image {path}: refused, {width} x {height} is more than {MAX_PIXELS:,} pixels")
    if min(width, height) == 0 or max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageError(f"image {path}: refused, {width} x {height} is stretched more than {MAX_ASPECT}:1")


def _to_rgb(image: Image.Image) -> Image.Image:
    with contextlib.suppress(Exception):  # broken EXIF data says nothing about the pixels; they are shown as they lie
        image = ImageOps.exif_transpose(image)
    if image.mode in ("I;16", "I;16B", "I;16L", "I", "F"):
        # Pillow's own conversion clips at 255, which turns most 16-bit pictures white.
        values = np.nan_to_num(np.asarray(image).astype(np.float64), posinf=0.0, neginf=0.0)
        top = 65535.0 if image.mode.startswith("I") else max(float(values.max(initial=0.0)), 1.0)
        image = Image.fromarray(np.clip(values * (255.0 / top), 0, 255).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def resize(image: Image.Image, spec: ImageSpec) -> np.ndarray:
    """The pixels that the model sees, uint8 [H, W, 3], of an RGB picture of any size."""
    return np.asarray(image.resize((spec.width, spec.height), Image.Resampling(spec.resample)))


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
