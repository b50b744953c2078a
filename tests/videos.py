"""Videos of the demo's scenes: folders of frames, not all of the same number, and questions about each."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from catp.calibration.data.dataset import VqaExample
from catp.export.demo import scenes

QUESTIONS = ("what is red?", "where is the black diamond in it?")
LENGTHS = (2, 1, 3)
"""Numbers of frames, in turns."""


@dataclass(frozen=True)
class Video:
    """A folder, and what is in it, in the order of the video."""

    folder: Path
    frames: list[Image.Image]

    def asked(self, *answers: str) -> list[VqaExample]:
        """Both questions, with the same answers."""
        key = str(self.folder)
        return [VqaExample(f"{key} {text}", self.folder, text, answers or ("x",), "x", key) for text in QUESTIONS]


def write_videos(folder: Path, count: int) -> list[Video]:
    """Frames are named so that the alphabet has another order: frame_9, frame_10."""
    pictures = [example.image for example in scenes.examples(count + 2, seed=3)]
    videos = []
    for number in range(count):
        video = Video(folder / f"video {number}", pictures[number : number + LENGTHS[number % 3]])
        video.folder.mkdir()
        for place, picture in enumerate(video.frames):
            picture.save(video.folder / f"frame_{place + 9}.png")
        videos.append(video)
    return videos


def write_questions(file: Path, videos: list[Video], answers: Callable[[Video, str], list[str]]) -> Path:
    """Both questions about each, beside the folders. Args: answers: those that are right."""
    lines = [
        {"image": video.folder.name, "question": text, "answers": answers(video, text)}
        for video in videos
        for text in QUESTIONS
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file
