from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from catp.calibration.harness.pictures import merge_equal, read_pictures
from catp.export.demo import IMAGES
from catp.runtime import ImageError, Pipeline, UsageError

SCENE = IMAGES / "scene-a.png"


def of_videos(pipeline: Pipeline) -> object:
    model = pipeline.manifest.model.model_copy(update={"frames": 4})
    return pipeline.manifest.model_copy(update={"model": model})


def test_a_picture_is_read_once_it_is_one(pipeline: Pipeline) -> None:
    with Image.open(SCENE) as scene:
        found = read_pictures([scene.convert("RGBA")], pipeline.manifest)
        assert isinstance(found, Image.Image) and found.mode == "RGB"
        assert np.array_equal(np.asarray(found), np.asarray(scene.convert("RGB")))


@pytest.mark.parametrize(
    ("visuals", "message"),
    [
        (None, "no picture, and BLIP-2"),
        ([], "no picture, and BLIP-2"),
        ([Image.new("RGB", (8, 8))] * 3, "3 pictures, and BLIP-2 with a decoder-only language model sees one"),
        (["film.mp4"], "the file film.mp4: neither video files nor sounds are decoded here"),
        ([{"array": [0.0], "sampling_rate": 16000}], "a dict: neither video files nor sounds"),
    ],
)
def test_other_visuals_are_refused_in_one_line(pipeline: Pipeline, visuals: list[object], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_pictures(visuals, pipeline.manifest)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_picture_that_cannot_be_read_is_an_error(pipeline: Pipeline, tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(SCENE.read_bytes()[:600])
    with Image.open(tmp_path / "cut.png") as cut, pytest.raises(ImageError):
        read_pictures([cut], pipeline.manifest)


def test_a_model_of_videos_gets_frames_or_a_folder_of_them(pipeline: Pipeline, tmp_path: Path) -> None:
    manifest = of_videos(pipeline)
    frames = [Image.new("L", (8, 8), level) for level in (0, 200)]
    found = read_pictures(frames, manifest)  # type: ignore[arg-type]
    assert [(frame.mode, frame.getpixel((0, 0))[0]) for frame in found] == [("RGB", 0), ("RGB", 200)]  # type: ignore
    assert read_pictures([str(tmp_path)], manifest) == str(tmp_path)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"the file film\.mp4"):
        read_pictures(["film.mp4"], manifest)  # type: ignore[arg-type]


def test_pictures_of_equal_pixels_become_one_object() -> None:
    first, again, other, wide = (Image.new("RGB", size, colour) for size, colour in (
        ((4, 2), "red"), ((4, 2), "red"), ((4, 2), "blue"), ((2, 4), "red"),
    ))  # fmt: skip
    found = merge_equal([first, again, other, wide, first])
    assert [id(source) for source in found] == [id(one) for one in (first, first, other, wide, first)]
