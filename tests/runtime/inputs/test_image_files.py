"""What a picture may be in: all of it gives the same pixels, and the rest is refused by name."""

from __future__ import annotations

import io
import os
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from catp.export.demo import samples
from catp.runtime import ImageError, Pipeline
from catp.runtime.inputs.images import MAX_PIXELS, load_frames, load_image

PATH = samples()[0].image
PROMPT = samples()[0].prompt
CONTENT = PATH.read_bytes()


def _named(value: Any) -> str:
    """A test's name, the same in every process."""
    return value if isinstance(value, str) else type(value).__name__


MODES = [
    "1", "L", "P", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV", "LA", "La", "PA",
    "I", "F", "I;16", "I;16L", "I;16B", "I;16N",
]  # fmt: skip


class Pipe(io.RawIOBase):
    """A file object that can be read once."""

    def __init__(self, content: bytes) -> None:
        self.left = content

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = min(len(buffer), len(self.left))
        buffer[:count], self.left = self.left[:count], self.left[count:]
        return count


SOURCES: dict[str, Callable[[], Any]] = {
    "path": lambda: PATH,
    "str": lambda: str(PATH),
    "PIL": lambda: Image.open(PATH),
    "bytes": lambda: CONTENT,
    "bytearray": lambda: bytearray(CONTENT),
    "memoryview": lambda: memoryview(CONTENT),
    "BytesIO": lambda: io.BytesIO(CONTENT),
    "file": lambda: PATH.open("rb"),
    "pipe": lambda: Pipe(CONTENT),
    "array": lambda: np.asarray(Image.open(PATH).convert("RGB")),
    "strided array": lambda: np.flip(np.asarray(load_image(PATH).rotate(180)), (0, 1)),
}


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_has_the_same_pixels_and_answer(pipeline: Pipeline, name: str) -> None:
    wanted = np.asarray(load_image(PATH))
    assert np.array_equal(load_image(SOURCES[name]()), wanted)
    assert np.array_equal(load_frames(SOURCES[name]())[0], wanted)
    answer = pipeline.generate([PATH], [PROMPT])[0]
    source = SOURCES[name]()
    found = pipeline.generate([source, source], [PROMPT, PROMPT])
    assert [(a.token_ids, a.kept_indices) for a in found] == [(answer.token_ids, answer.kept_indices)] * 2
    assert "".join(pipeline.stream(SOURCES[name](), PROMPT)) == answer.answer


def test_a_source_that_is_read_once_serves_several_prompts_of_a_q_former(instructblip_bundle: Path) -> None:
    pipeline = Pipeline.load(instructblip_bundle)
    prompts = ["what is red?", "where?"]
    wanted = [a.token_ids for a in pipeline.ask(PATH, prompts, max_new_tokens=3)]
    assert [a.token_ids for a in pipeline.ask(Pipe(CONTENT), prompts, max_new_tokens=3)] == wanted  # type: ignore[arg-type]


def test_grey_arrays_are_grey() -> None:
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8)
    assert np.array_equal(load_image(grey), np.stack([grey] * 3, 2))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "given as NoneType: no picture; accepted: a PIL image, a path, bytes"),
        (7, "given as int: no picture"),
        (torch.zeros(3, 8, 8), "given as Tensor: no picture"),
        (np.zeros((8, 8, 3), np.float32), r"given as ndarray: float32 of shape \[8, 8, 3\]; accepted"),
        (np.zeros((3, 8, 8), np.uint8), r"uint8 of shape \[3, 8, 8\]; accepted"),
        (np.zeros((8, 8, 4), np.uint8), r"uint8 of shape \[8, 8, 4\]"),
        (np.zeros((8, 8, 1), np.uint8), r"uint8 of shape \[8, 8, 1\]"),
        (np.zeros((1, 8, 8, 3), np.uint8), r"uint8 of shape \[1, 8, 8, 3\]"),
        (np.zeros(8, np.uint8), r"uint8 of shape \[8\]"),
        (np.zeros((0, 8, 3), np.uint8), "8 x 0 is stretched"),
        (b"", "given as bytes: the file is empty"),
        (b"no picture", "given as bytes: not an image Pillow can read"),
        (CONTENT[:200], "broken or truncated"),
        (io.BytesIO(CONTENT[:200]), "given as a file object: broken or truncated"),
        (io.StringIO("text"), "opened as text; open it in binary mode"),
    ],
    ids=_named,
)
def test_what_is_no_picture_is_refused_by_name(pipeline: Pipeline, source: Any, message: str) -> None:
    for call in (
        lambda: load_image(source),
        lambda: pipeline.generate([source], [PROMPT]),
        lambda: pipeline.ask(source, [PROMPT]),
        lambda: next(pipeline.stream(source, PROMPT)),
    ):
        with pytest.raises(ImageError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [None, np.zeros((3, 8, 8), np.uint8), torch.zeros(8, 8, 3), b"?"],
    ids=_named,
)
def test_retrieval_and_videos_refuse_it_too(retrieval_bundle: Path, video_bundle: Path, source: Any) -> None:
    with pytest.raises(ImageError, match=r"^image given as "):
        Pipeline.load(retrieval_bundle).match([source], ["a red circle"])
    with pytest.raises(ImageError, match=r"^image given as "):
        Pipeline.load(video_bundle).ask(source, [PROMPT])


def test_a_pil_image_with_a_broken_file_behind_it(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(CONTENT[: len(CONTENT) // 2])
    with pytest.raises(ImageError, match="given as an object: broken or truncated"):
        load_image(Image.open(tmp_path / "x.png"))
    closed = Image.open(PATH)
    closed.close()
    with pytest.raises(ImageError, match="given as an object: broken or truncated"):
        load_image(closed)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_that_pillow_has(mode: str) -> None:
    assert load_image(Image.new(mode, (5, 4))).mode == "RGB"


def test_premultiplied_greys_are_laid_on_white() -> None:
    grey = Image.new("LA", (2, 2), (100, 128))
    assert np.array_equal(load_image(grey.convert("La")), load_image(grey))


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N", "I"])
def test_sixteen_bits_are_scaled_in_every_order_of_bytes(mode: str) -> None:
    picture = Image.new(mode, (3, 2), 0)
    picture.putpixel((0, 0), 65535)
    picture.putpixel((1, 0), 32896)
    assert np.asarray(load_image(picture))[0, :, 0].tolist() == [255, 128, 0]


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_an_animation_is_no_picture(tmp_path: Path, form: str) -> None:
    colours = ("red", "lime", "blue")
    frames = [Image.new("RGB", (8, 6), colour) for colour in colours]
    path = tmp_path / f"x.{form.lower()}"
    frames[0].save(path, form, save_all=True, append_images=frames[1:], lossless=True)
    for source in (path, path.read_bytes(), Image.open(path)):
        with pytest.raises(ImageError, match="it is an animation, and one picture is needed"):
            load_image(source)
        found = [np.asarray(frame)[0, 0].tolist() for frame in load_frames(source)]
        assert found == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    assert load_image(Image.open(path).convert("RGB")).size == (8, 6)  # one of its frames
    frames[0].save(path, form)
    assert load_image(path).size == (8, 6)


def test_pages_are_no_frames(tmp_path: Path) -> None:
    pages = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    pages[0].save(tmp_path / "x.tif", save_all=True, append_images=pages[1:])
    assert np.asarray(load_image(tmp_path / "x.tif"))[0, 0].tolist() == [255, 0, 0]


def test_an_animation_that_is_large_in_all_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    monkeypatch.setattr("catp.runtime.inputs.images.MAX_PIXELS", 3 * 8 * 6)
    assert len(load_frames(tmp_path / "x.gif")) == 3
    monkeypatch.setattr("catp.runtime.inputs.images.MAX_PIXELS", 3 * 8 * 6 - 1)
    with pytest.raises(ImageError, match="3 frames of 8 x 6 are more than 143 pixels"):
        load_frames(tmp_path / "x.gif")


def claiming(width: int, height: int) -> bytes:
    """A PNG whose header alone is of that size."""
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "PNG")
    content = bytearray(file.getvalue())
    content[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    content[29:33] = PngImagePlugin._crc32(bytes(content[12:29])).to_bytes(4, "big")
    return bytes(content)


@pytest.mark.parametrize("size", [(9_700, 9_700), (10_000, 10_000), (10_001, 10_000), (20_000, 20_000)])
def test_no_warning_of_pillow_s_and_the_limit_is_ours(size: tuple[int, int]) -> None:
    message = "broken or truncated" if size[0] * size[1] <= MAX_PIXELS else f"more than {MAX_PIXELS:,} pixels"
    with warnings.catch_warnings(record=True) as seen, pytest.raises(ImageError, match=message):
        warnings.simplefilter("always")
        load_image(claiming(*size))
    assert not seen


def test_threads_leave_warnings_as_they_were(tmp_path: Path) -> None:
    before, limit = list(warnings.filters), Image.MAX_IMAGE_PIXELS
    threads = [threading.Thread(target=lambda: [load_image(CONTENT) for _ in range(30)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert list(warnings.filters) == before
    assert list(warnings.filters) == before and limit == Image.MAX_IMAGE_PIXELS


def test_special_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ImageError, match="a device or a pipe"):
        load_image(tmp_path / "fifo")
    with pytest.raises(ImageError, match="a folder; give a file"):
        load_image(tmp_path)
    for name in ("x" * 5000, "a\0b"):
        with pytest.raises(ImageError, match="can't be opened"):
            load_image(name)
