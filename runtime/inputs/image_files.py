"""Sources of a picture: a path, a file object, bytes, an array, or an image of Pillow's."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, UnidentifiedImageError

from catp.runtime.errors import CatpError, ImageError

ImageSource = str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | np.ndarray | Image.Image

ACCEPTED = "a PIL image, a path, bytes, a file object opened in binary mode, or a uint8 array [H, W, 3] or [H, W]"

_BROKEN = (ArithmeticError, AttributeError, EOFError, LookupError, OSError, RuntimeError, SyntaxError, TypeError)
"""Errors that Pillow's decoders raise on broken data, with ValueError and struct.error."""


def is_one(source: object) -> bool:
    """Whether it is what a picture can be in, and not a sequence of them."""
    kinds = (str, os.PathLike, bytes, bytearray, memoryview, np.ndarray, Image.Image)
    return isinstance(source, kinds) or hasattr(source, "read")


def identity_of(source: object) -> str | int:
    """Equal for two sources that are known to be the same picture: paths of one name, or one object."""
    return os.fsdecode(source) if isinstance(source, str | os.PathLike) else id(source)


@contextmanager
def opened(source: ImageSource, formats: Collection[str] | None = None) -> Iterator[tuple[Image.Image, str]]:
    """The picture with its name for messages; not decoded yet where it comes from a file.

    Args:
        formats: Pillow's names of those that a file may have; None: all.

    Raises:
        ImageError: it is nothing of what is accepted, missing, empty, not an image, or, in the body, broken.
    """
    name = _name(source)
    try:
        with ExitStack() as stack:
            yield _open(source, name, stack, formats), name
    except CatpError:
        raise
    except UnidentifiedImageError:
        accepted = ", ".join(formats) if formats else "PNG, JPEG, WebP, TIFF, BMP, GIF, ..."
        raise ImageError(f"image {name}: not an image Pillow can read ({accepted})") from None
    except (
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:
        # Of formats that look at their size by themselves.
        raise ImageError(f"image {name}: refused, {error}") from None
    except (*_BROKEN, ValueError, struct.error) as error:
        raise ImageError(f"image {name}: broken or truncated ({error})") from None


def _name(source: object) -> str:
    if isinstance(source, str | os.PathLike):
        return os.fsdecode(source)[:200]
    if isinstance(source, Image.Image):
        return "given as an object"
    if hasattr(source, "read"):
        return str(getattr(source, "name", "") or "given as a file object")[:200]
    return f"given as {type(source).__name__}"


def _open(source: ImageSource, name: str, stack: ExitStack, formats: Collection[str] | None) -> Image.Image:
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, np.ndarray):
        return _from_array(source, name)
    if isinstance(source, bytes | bytearray | memoryview):
        return _identify(io.BytesIO(source), name, formats)
    if isinstance(source, str | os.PathLike):
        return _identify(stack.enter_context(_regular_file(Path(os.fsdecode(source)), name)), name, formats)
    if hasattr(source, "read"):
        return _identify(_rewound(source, name), name, formats)
    raise ImageError(f"image {name}: no picture; accepted: {ACCEPTED}")


def _from_array(array: np.ndarray, name: str) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,)):
        raise ImageError(f"image {name}: {array.dtype} of shape {list(array.shape)}; accepted: {ACCEPTED}")
    height, width = array.shape[:2]
    if not array.size:
        return Image.new("RGB", (width, height))
    return Image.fromarray(np.ascontiguousarray(array))


def _regular_file(path: Path, name: str) -> IO[bytes]:
    try:
        if path.is_dir():
            raise ImageError(f"image {name}: it is a folder; give a file")
        if path.exists() and not path.is_file():
            raise ImageError(f"image {name}: it is a device or a pipe; give a regular file")
        return path.open("rb")
    except (OSError, ValueError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else f"can't be opened ({error})"
        raise ImageError(f"image {name}: {reason}") from None


def _rewound(file: IO[bytes], name: str) -> IO[bytes]:
    """The file at its beginning; what can't be rewound, such as a pipe, is read."""
    if isinstance(file, io.TextIOBase):
        raise ImageError(f"image {name}: the file is opened as text; open it in binary mode")
    try:
        file.seek(0)
        return file
    except (AttributeError, OSError):
        return io.BytesIO(file.read())


def _identify(file: IO[bytes], name: str, formats: Collection[str] | None) -> Image.Image:
    """As `Image.open`, but for its warning about large pictures: it has a limit of its own, and to silence a warning
    is to change what other threads see."""
    if not (beginning := file.read(16)):
        raise ImageError(f"image {name}: the file is empty")
    tried: set[str] = set()
    for load in (Image.preinit, Image.init):  # the formats that most pictures have first: all take 45 modules to load
        load()
        for form in list(Image.ID if formats is None else formats):
            if form in tried or form not in Image.OPEN:
                continue
            tried.add(form)
            factory, accept = Image.OPEN[form]
            if accept is None or accept(beginning) is True:
                file.seek(0)
                try:
                    return factory(file, "")
                except (SyntaxError, LookupError, TypeError, struct.error):
                    continue  # another format may know it
    raise UnidentifiedImageError
