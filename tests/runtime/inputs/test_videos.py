"""Videos: any number of frames gives the tokens of Hugging Face's, and what is none is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from references import count_points
from typer.testing import CliRunner

from catp.export.checkpoints.loading import load_checkpoint
from catp.export.demo import samples
from catp.export.verification.reference import Reference
from catp.runtime import ImageError, Pipeline, UsageError
from catp.runtime.bundle.generation_settings import GREEDY
from catp.runtime.bundle.manifest import Positions
from catp.runtime.commands.run import app
from catp.runtime.image_sides.query_tokens import Remembered
from catp.runtime.inputs.images import load_image
from catp.runtime.inputs.videos import frames_of
from catp.runtime.providers.base import to_host
from catp.runtime.questions import Wishes
from catp.runtime.system.printable import printable

PICTURES = [load_image(sample.image) for sample in samples()]
PROMPT = samples()[0].prompt


@pytest.fixture(scope="module")
def pipeline(video_bundle: Path) -> Pipeline:
    return Pipeline.load(video_bundle)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three frames, named against the order of writing."""
    for number in (2, 0, 1):
        PICTURES[number].save(tmp_path / f"{number:03}.png")
    (tmp_path / ".hidden").touch()
    return tmp_path


@pytest.fixture(scope="module")
def expected(video_checkpoint: Path) -> Callable[[int], list[int]]:
    """Hugging Face's tokens of the first pictures as a video."""
    reference = Reference(load_checkpoint(str(video_checkpoint)))

    def generate(frames: int) -> list[int]:
        pixels = torch.cat([reference.pixel_values([picture]) for picture in PICTURES[:frames]])
        instructions = reference.instructions([PROMPT])
        return reference.generate(pixels, reference.tokenize(PROMPT), 6, instructions).token_ids

    return generate


def test_as_many_frames_as_one_likes(pipeline: Pipeline, folder: Path, expected: Callable[[int], list[int]]) -> None:
    one, three = expected(1), expected(3)
    assert one != three
    settings = {"ratio": 0.0, "max_new_tokens": 6}
    assert pipeline.ask(PICTURES[0], [PROMPT], **settings)[0].token_ids == one
    assert pipeline.ask(PICTURES[:3], [PROMPT], **settings)[0].token_ids == three
    assert pipeline.ask(folder, [PROMPT], **settings)[0].token_ids == three
    pieces = pipeline.stream(folder, PROMPT, **settings)
    assert "".join(pieces).strip() == pipeline.detokenize(three)


def test_frames_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    wanted = [
        "9.png",
        "10.png",
        "b007.png",
        "b7.png",
        "b10.png",
        "frame_1.png",
        "frame_2.png",
        "frame_10.png",
        "x2y9",
        "x2y10",
    ]
    for name in sorted(wanted):
        (tmp_path / name).touch()
    assert [Path(str(frame)).name for frame in frames_of(tmp_path)] == wanted


@pytest.mark.parametrize("form", ["WEBP", "PNG"])
def test_an_animation_is_its_frames(
    pipeline: Pipeline, tmp_path: Path, expected: Callable[[int], list[int]], form: str
) -> None:
    path = tmp_path / "x"
    PICTURES[0].save(path, form, save_all=True, append_images=PICTURES[1:3], lossless=True)
    three = expected(3)
    for source in (path, path.read_bytes(), Image.open(path)):
        answers = pipeline.ask(source, [PROMPT, PROMPT], ratio=0.0, max_new_tokens=6)
        assert [answer.token_ids for answer in answers] == [three] * 2
    with pytest.raises(ImageError, match="it is an animation, and one picture is needed"):
        pipeline.ask([PICTURES[0], path], [PROMPT])


def test_a_gif_is_its_frames_as_pillow_shows_them(tmp_path: Path) -> None:
    PICTURES[0].save(tmp_path / "x.gif", save_all=True, append_images=PICTURES[1:3])
    with Image.open(tmp_path / "x.gif") as gif:
        wanted = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(gif)]
    found = [np.asarray(frame) for frame in frames_of(tmp_path / "x.gif")]
    assert len(found) == 3 and np.array_equal(found, wanted)


def test_every_frame_keeps_its_own(pipeline: Pipeline) -> None:
    answer = pipeline.ask(PICTURES[:3], [PROMPT], ratio=0.5, max_new_tokens=2)[0]
    alone = [pipeline.ask(picture, [PROMPT], ratio=0.5, max_new_tokens=2)[0] for picture in PICTURES[:3]]
    wanted = [24 * frame + index for frame, one in enumerate(alone) for index in one.kept_indices]
    assert answer.kept_indices == wanted and answer.num_kept == 3 * 12


def test_a_folder_of_frames_on_the_command_line(video_bundle: Path, folder: Path, pipeline: Pipeline) -> None:
    found = CliRunner().invoke(app, [str(video_bundle), "--image", str(folder), "--prompt", PROMPT])
    assert found.exit_code == 0
    # A model with random weights may answer in characters that steer a terminal.
    assert found.stdout.rstrip("\n") == printable(pipeline.ask(PICTURES[:3], [PROMPT])[0].answer)


@pytest.mark.parametrize(
    ("videos", "error", "message"),
    [
        ([PICTURES[:2], PICTURES[:3]], UsageError, "videos of 2, 3 frames: a batch has equally many in each"),
        ([[], []], UsageError, "video: it has no frames"),
        ([[PICTURES[0], 7]] * 2, UsageError, "video: frame 1 is a int; give a file or a PIL image"),
        ([[samples()[0].image, "missing.png"]] * 2, ImageError, r"image missing\.png: no such file"),
    ],
)
def test_what_is_no_batch_of_videos_is_refused(
    pipeline: Pipeline, videos: list[list[object]], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        pipeline.generate(videos, [PROMPT, PROMPT])  # type: ignore[arg-type]


def test_frames_beyond_the_last_position_are_refused(pipeline: Pipeline) -> None:
    with pytest.raises(UsageError, match=r"video: 7 frames take 24 positions each.* give at most 6 frames"):
        pipeline.ask(PICTURES[:1] * 7, [PROMPT])
    assert pipeline.ask(PICTURES[:1] * 7, [PROMPT], ratio=0.5, positions="compact")[0].num_kept == 7 * 12
    with pytest.raises(UsageError, match=r"video: 13 frames take 12 positions each.* give at most 12 frames"):
        pipeline.ask(PICTURES[:1] * 13, [PROMPT], ratio=0.5, positions="compact")  # 156, all that there are


def test_an_empty_folder_is_refused(pipeline: Pipeline, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the folder is empty; give one with a picture for each frame"):
        pipeline.ask(tmp_path, [PROMPT])


@pytest.mark.parametrize("positions", ["original", "compact"])
def test_each_frame_keeps_its_share_of_the_votes(
    pipeline: Pipeline, video_checkpoint: Path, positions: Positions
) -> None:
    """Counted by hand from Hugging Face's maps, and continued by its language model."""
    reference = Reference(load_checkpoint(str(video_checkpoint)))
    videos = [PICTURES[:3], [PICTURES[2], PICTURES[2], PICTURES[1]], PICTURES[1:4]]
    answers = pipeline.generate(videos, [PROMPT] * 3, keep_mass=0.25, positions=positions, max_new_tokens=6)
    sums = []
    for video, answer in zip(videos, answers):
        embeds = reference.image_embeds(torch.cat([reference.pixel_values([frame]) for frame in video])).embeds
        query_embeds, evidence = reference.query_embeds(embeds, None, reference.instructions([PROMPT] * 3))
        maps = [layer.numpy() for layer in evidence.cross_attention if layer is not None]
        wanted = []
        for frame, scores in enumerate(count_points(maps)):
            order = sorted(range(24), key=lambda query: (-scores[query], query))
            share = next(k for k in range(1, 25) if sum(scores[order[:k]]) >= 0.25 * sum(scores))
            wanted += sorted(24 * frame + query for query in order[:share])
        assert answer.kept_indices == wanted
        ids = reference.tokenize(PROMPT)
        found = reference.continue_greedily(query_embeds.reshape(72, -1), wanted, positions, ids, 6)
        assert answer.token_ids == found.token_ids
        sums.append(len(wanted))
        # A server keeps the same of what it remembers.
        encoded = pipeline.encode(pipeline.preprocess(video), [PROMPT] * 3)
        for seen in (pipeline.remember(encoded), Remembered({name: to_host(encoded[name]) for name in encoded})):
            kept = pipeline.keep(seen, Wishes(GREEDY, keep_mass=0.25, positions=positions))
            assert kept.indices[0].tolist() == wanted and kept.frames == 3
    assert len(set(sums)) > 1  # videos of one batch that keep differently many


def test_a_share_that_could_take_more_positions_than_there_are_is_refused(pipeline: Pipeline) -> None:
    with pytest.raises(UsageError, match=r"video: 7 frames take 24 positions each.* give at most 6 frames"):
        pipeline.ask(PICTURES[:1] * 7, [PROMPT], keep_mass=0.2, positions="compact")


def test_a_model_of_images_takes_no_video(demo_bundle: Path) -> None:
    with pytest.raises(UsageError, match=r"image: a sequence of 2, and BLIP-2 .* takes one image a prompt"):
        Pipeline.load(demo_bundle).ask(PICTURES[:2], [PROMPT])
