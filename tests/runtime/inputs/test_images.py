from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from pydantic import ValidationError
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from catp.runtime import ImageError, UsageError
from catp.runtime.bundle.image_spec import ImageSpec
from catp.runtime.inputs.images import MAX_ASPECT, MAX_PIXELS, load_image, preprocess

RNG = np.random.default_rng(0)


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, channels), np.uint8)


@pytest.mark.parametrize("shape", [(96, 96), (31, 200), (480, 640), (1, 7)])
@pytest.mark.parametrize("size", [{"height": 56, "width": 56}, {"height": 224, "width": 224}])
def test_pixels_equal_the_hugging_face_processor(shape: tuple[int, int], size: dict[str, int]) -> None:
    images = [Image.fromarray(noise(*shape)) for _ in range(2)]
    processor = BlipImageProcessorPil(size=size)
    expected = processor(images, return_tensors="np").pixel_values
    spec = ImageSpec.from_preprocessor_config(processor.to_dict())
    actual = preprocess(images, spec)
    assert actual.dtype == np.float32 and actual.shape == expected.shape
    std = np.array(spec.image_std)[:, None, None]
    assert np.abs((actual - expected) * std).max() <= 1 / 255


@pytest.mark.parametrize("mode", ["L", "RGBA", "LA", "P", "CMYK", "1", "YCbCr"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    picture = Image.fromarray(noise(20, 30)).convert(mode)
    # Pillow before 13 can't read the YCbCr TIFFs that it writes.
    path = tmp_path / {"CMYK": "x.tif", "YCbCr": "x.jpg"}.get(mode, "x.png")
    picture.save(path)
    loaded = load_image(path)
    assert loaded.mode == "RGB" and loaded.size == (30, 20)


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (np.asarray(load_image(tmp_path / "clear.png")) == 255).all()


def test_sixteen_bit_greys_are_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)  # all there are
    Image.fromarray(values).save(tmp_path / "deep.png")
    loaded = np.asarray(load_image(tmp_path / "deep.png"))[..., 0]
    assert np.array_equal(loaded, np.round(values / 257))


def test_floats_above_one_are_scaled_by_the_largest_and_those_below_by_one() -> None:
    values = np.linspace(0, 1, 48, dtype=np.float32).reshape(6, 8)
    for factor, wanted in ((8, values), (1, values), (0.5, values / 2)):
        found = np.asarray(load_image(Image.fromarray(values * np.float32(factor))))[..., 1]
        assert np.array_equal(found, np.round(wanted.astype(np.float64) * 255))


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    picture = Image.new("RGB", (40, 20), "white")
    picture.paste("red", (0, 0, 10, 20))  # left edge
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate 90 degrees clockwise to show
    picture.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    loaded = load_image(tmp_path / "turned.jpg")
    assert loaded.size == (20, 40)
    top = np.asarray(loaded)[:5].mean((0, 1))
    assert top[0] > 200 and top[1] < 80  # the left edge came to the top


def test_broken_exif_does_not_hide_the_pixels(tmp_path: Path) -> None:
    Image.new("RGB", (9, 7), "red").save(tmp_path / "x.png", exif=b"Exif\0\0II*\0")
    assert load_image(tmp_path / "x.png").size == (9, 7)


def test_a_float_image_with_a_hole_is_not_black(tmp_path: Path) -> None:
    values = np.full((8, 8), 0.5, np.float32)
    values[0, 0] = np.nan
    Image.fromarray(values * 2).save(tmp_path / "x.tif")
    assert (np.asarray(load_image(tmp_path / "x.tif"))[1:] == 255).all()
    for hole in (np.nan, np.inf, -np.inf):
        values[0, 0] = hole
        assert (np.asarray(load_image(Image.fromarray(values * 100)))[0, :2] == [[0] * 3, [255] * 3]).all()


def test_a_picture_without_pixels_is_refused() -> None:
    with pytest.raises(ImageError, match="0 x 5"):
        load_image(Image.new("RGB", (0, 5)))


def test_a_decompression_bomb_is_refused_from_its_header(tmp_path: Path) -> None:
    # A real PNG whose header alone claims 20,000 x 20,000 pixels: nothing may be decoded.
    path = tmp_path / "bomb.png"
    Image.new("L", (8, 8)).save(path)
    content = bytearray(path.read_bytes())
    content[16:24] = (20_000).to_bytes(4, "big") * 2
    content[29:33] = PngImagePlugin._crc32(bytes(content[12:29])).to_bytes(4, "big")
    path.write_bytes(content)
    with pytest.raises(ImageError, match=f"more than {MAX_PIXELS:,} pixels"):
        load_image(path)


def test_a_wide_picture_is_fine_and_a_thread_is_not(tmp_path: Path) -> None:
    Image.new("RGB", (20_000, 100)).save(tmp_path / "wide.png")
    assert load_image(tmp_path / "wide.png").size == (20_000, 100)
    for shape in ((MAX_ASPECT, 1), (1, MAX_ASPECT), (2 * MAX_ASPECT, 2)):
        assert load_image(Image.new("RGB", shape)).size == shape
    for width, height in ((MAX_ASPECT + 1, 1), (1, MAX_ASPECT + 1), (2 * MAX_ASPECT + 1, 2)):
        with pytest.raises(ImageError, match=f"{width} x {height} is stretched more than {MAX_ASPECT}:1"):
            load_image(Image.new("RGB", (width, height)))
    Image.new("RGB", (20_000, 1)).save(tmp_path / "thread.png")
    with pytest.raises(ImageError, match="stretched"):
        load_image(tmp_path / "thread.png")


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file"), (b"", "empty"), (b"not an image at all", "not an image"), ("truncated", "truncated")],
)
def test_unreadable_files_are_named(tmp_path: Path, content: bytes | str | None, message: str) -> None:
    path = tmp_path / "broken.png"
    if content == "truncated":
        Image.fromarray(noise(64, 64)).save(path)
        path.write_bytes(path.read_bytes()[:2000])
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(ImageError, match=message) as caught:
        load_image(path)
    assert "broken.png" in str(caught.value)


@pytest.mark.parametrize(
    "change", [{"size": {"shortest_edge": 224}}, {"do_center_crop": True}, {"do_resize": False}], ids=str
)
def test_a_processor_that_does_something_else_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=r"preprocessor_config.json"):
        ImageSpec.from_preprocessor_config({**BlipImageProcessorPil().to_dict(), **change})


SPELLINGS: dict[str, dict[str, Any]] = {
    "one number for all channels": {"image_mean": 0.4, "image_std": 0.3},
    "whole numbers": {"image_mean": 0, "image_std": 1},
    "no mean": {"image_mean": [0.0, 0.0, 0.0], "image_std": [1.0, 0.5, 2.0]},
    "no rescaling": {"do_rescale": False},
    "no normalising": {"do_normalize": False},
    "bytes": {"do_rescale": False, "do_normalize": False},
    "to -1 and 1": {"rescale_factor": 1 / 127.5, "image_mean": 1.0, "image_std": 1.0},
    "a whole factor": {"rescale_factor": 2},
    "steps that are null": {"do_rescale": None, "do_normalize": None},
    "a zero for false": {"do_normalize": 0},
    "a word for true": {"do_rescale": "no"},
    "numbers that a step that is off would need": {
        "do_rescale": False, "rescale_factor": float("nan"), "do_normalize": False, "image_mean": None, "image_std": 0,
    },
    "nearest": {"resample": 0},
    "hamming, a square by its side": {"resample": 5, "size": 40},
    "height and width in a row": {"size": [30, 50]},
}  # fmt: skip


@pytest.mark.parametrize("settings", SPELLINGS.values(), ids=SPELLINGS)
def test_settings_are_read_as_hugging_face_reads_them(settings: dict[str, Any]) -> None:
    images = [Image.fromarray(noise(37, 81))]
    processor = BlipImageProcessorPil(**settings)
    expected = processor(images, return_tensors="np").pixel_values.astype(np.float32)
    actual = preprocess(images, ImageSpec.from_preprocessor_config(processor.to_dict()))
    assert actual.dtype == np.float32 and actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("shape", [(37, 81), (81, 37), (56, 56), (30, 400), (223, 224)])
@pytest.mark.parametrize(("edge", "crop"), [(56, (56, 56)), (64, (56, 40)), (33, (32, 33))])
def test_a_crop_at_the_center_is_hugging_face_s(shape: tuple[int, int], edge: int, crop: tuple[int, int]) -> None:
    images = [Image.fromarray(noise(*shape))]
    processor = CLIPImageProcessorPil(size={"shortest_edge": edge}, crop_size=dict(zip(("height", "width"), crop)))
    expected = processor(images, return_tensors="np").pixel_values.astype(np.float32)
    spec = ImageSpec.from_preprocessor_config(processor.to_dict())
    assert (spec.height, spec.width, spec.shortest_edge) == (*crop, edge)
    np.testing.assert_allclose(preprocess(images, spec), expected, atol=1e-5)
    assert ImageSpec.model_validate(spec.model_dump()) == spec


def test_a_crop_that_is_no_crop_is_refused() -> None:
    for changed in ({"size": {"shortest_edge": 40}}, {"size": {"shortest_edge": 56, "longest_edge": 80}}):
        with pytest.raises(UsageError, match=r"preprocessor_config.json"):
            settings = CLIPImageProcessorPil(crop_size={"height": 56, "width": 56}).to_dict()
            ImageSpec.from_preprocessor_config({**settings, **changed})
    assert "shortest_edge" not in ImageSpec.from_preprocessor_config(BlipImageProcessorPil().to_dict()).model_dump()
    spec = ImageSpec.from_preprocessor_config(CLIPImageProcessorPil(size={"shortest_edge": 1000}).to_dict())
    with pytest.raises(ImageError, match="resized it would have more than"):
        preprocess([Image.new("RGB", (400, 2))], spec)


NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in ("image_mean", "image_std") for value in (NAN, INFINITE, -0.5, [0.5, NAN, 0.5])),
        *(("image_std", value) for value in (0, [0.2, 0.0, 0.2], 1e-40, None, True, "0.5", [0.5], [0.5] * 4, {"r": 1})),
        ("image_mean", None),
        *(("rescale_factor", value) for value in (NAN, INFINITE, 0, -1 / 255, 1e-60, 10**400, "1/255", [1], None)),
        *(("resample", value) for value in ("bicubic", 6, -1, 3.0, True, None)),
        *(("size", {"height": value, "width": 96}) for value in ("96", 96.0, -1, 0, None, True)),
        *(("size", value) for value in (None, "96", {"height": 96})),
    ],
    ids=str,
)
def test_a_value_that_can_not_be_used_is_named(name: str, value: Any) -> None:
    config = {**BlipImageProcessorPil().to_dict(), name: value}
    with pytest.raises(UsageError) as caught:
        ImageSpec.from_preprocessor_config(config)
    message = str(caught.value)
    assert ("height" if name == "size" else name) in message and "\n" not in message and len(message) < 300


@pytest.mark.parametrize("name", ["image_mean", "image_std", "rescale_factor"])
@pytest.mark.parametrize("value", [NAN, INFINITE, -1.0, 1e-13, 1e13])
def test_a_manifest_has_numbers_that_pixels_can_be_computed_with(name: str, value: float) -> None:
    spec = ImageSpec.from_preprocessor_config(BlipImageProcessorPil().to_dict()).model_dump()
    assert ImageSpec.model_validate(spec)
    spec[name] = value if name == "rescale_factor" else (0.5, value, 0.5)
    with pytest.raises(ValidationError, match=name):
        ImageSpec.model_validate(spec)
