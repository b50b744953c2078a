"""Pictures with their captions, as retrieval is measured on: Karpathy's splits of COCO and Flickr30k.

    [{"image": "val2014/COCO_val2014_000000391895.jpg", "caption": ["A man with a red helmet ...", ...]}, ...]

Other keys are ignored. `image` is relative to a folder of pictures.
"""

from __future__ import annotations

import hashlib
import heapq
import os
import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from catp.calibration.data.dataset import subset_size
from catp.calibration.data.errors import DataError, first_problem
from catp.runtime.errors import UsageError

WORDS = 30
"""Words of a caption that BLIP's official evaluation reads."""


@dataclass(frozen=True)
class Captions:
    """Pictures, and texts of which each belongs to one of them."""

    name: str
    images: tuple[Path, ...]
    texts: tuple[str, ...]
    image_of: tuple[int, ...]  # by text

    def subset(self, limit: int | None, seed: int) -> Captions:
        """At most so many pictures, chosen by the seed, with all of their texts, in their order; None: all of them.

        Raises:
            UsageError: the limit is out of range.
        """
        count = subset_size(len(self.images), limit, None)
        # Ranked by a hash, as questions are: independent of library versions and of the file's order.
        chosen = sorted(
            heapq.nsmallest(
                count,
                range(len(self.images)),
                key=lambda image: hashlib.sha256(f"{seed} {self.images[image].name}".encode()).digest(),
            )
        )
        place = {image: number for number, image in enumerate(chosen)}
        texts = [number for number, image in enumerate(self.image_of) if image in place]
        return Captions(
            self.name,
            tuple(self.images[image] for image in chosen),
            tuple(self.texts[text] for text in texts),
            tuple(place[self.image_of[text]] for text in texts),
        )


class _Entry(BaseModel):
    image: str = Field(min_length=1)
    caption: list[str] | str


_ENTRIES = TypeAdapter(list[_Entry])


def is_captions(name_or_path: str) -> bool:
    """Whether it is a .json file with a list in it: VQAv2's files have objects."""
    path = Path(name_or_path)
    if path.suffix.lower() != ".json":
        return False
    try:
        with path.open("rb") as file:
            return file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["
    except OSError:
        return False


def read_captions(path: Path, folder: Path | None) -> Captions:
    """The pictures and captions of a file. Pictures are not opened: a missing one shows when it is loaded.

    Args:
        folder: that the names of pictures are relative to; None: the file's own.

    Raises:
        UsageError: the file can't be opened.
        DataError: it is not as above, names a picture twice, or has one without captions.
    """
    try:
        entries = _ENTRIES.validate_json(path.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    except OSError as error:
        raise UsageError(f"data {path}: can't be opened ({error.strerror}); give a .json file") from None
    except ValidationError as error:
        raise DataError(f"{path}: {first_problem(error)}; it should be a list of image and caption") from None
    if not entries:
        raise DataError(f"{path}: no pictures in it")
    images: dict[Path, int] = {}
    texts: list[str] = []
    image_of: list[int] = []
    for number, entry in enumerate(entries, start=1):
        image = Path(os.path.normpath((folder or path.parent) / entry.image))
        captions = [entry.caption] if isinstance(entry.caption, str) else entry.caption
        if not any(caption.strip() for caption in captions):
            raise DataError(f"{path}, entry {number}: {entry.image} has no caption; give at least one")
        if isinstance(entry.caption, list) and image in images:
            raise DataError(f"{path}, entry {number}: {entry.image} is there twice; give each picture once")
        place = images.setdefault(image, len(images))
        for caption in captions:
            if caption.strip():
                texts.append(caption)
                image_of.append(place)
    return Captions(path.name, tuple(images), tuple(texts), tuple(image_of))


def plain_words(caption: str, words: int = WORDS) -> str:
    """A caption as BLIP's official evaluation reads it: in lower case, marks out, so many words at most.

    Source: https://github.com/salesforce/BLIP, data/utils.py, pre_caption.
    """
    return " ".join(re.sub(r"[.!\"()*#:;~]", " ", caption.lower()).split()[:words])
