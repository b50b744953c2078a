"""Tasks of lmms-eval on disk: scenes of the demo, asked in ways that tasks of the harness have."""

from __future__ import annotations

import json
from pathlib import Path

from catp.calibration.data.demo import DemoScenes

COUNT = 24
INSTRUCTION = "\nAnswer the question using a single word or phrase."
"""What the harness's tasks put below a question."""

GREEDY = {"max_new_tokens": 16, "temperature": 0, "top_p": 1.0, "num_beams": 1, "do_sample": False}
CHOICES = ("a black diamond", "a red circle", "blue", "green")

_UTILS = """
from PIL import Image

def picture(doc):
    return [Image.open(doc["image"]).convert("RGB")]

def two_pictures(doc):
    return picture(doc) * 2

def no_picture(doc):
    return []

def video_file(doc):
    return ["film.mp4"]

def question(doc, lmms_eval_specific_kwargs=None):
    around = lmms_eval_specific_kwargs
    return around["pre_prompt"] + doc["question"] + around["post_prompt"]
"""


def write_tasks(folder: Path) -> list[dict[str, str]]:
    """Tasks in the harness's own files, and the documents that all of them are about."""
    folder.mkdir(parents=True)
    documents = []
    for number, scene in enumerate(DemoScenes(COUNT)):
        path = folder / f"{number}.png"
        scene.image.save(path)
        documents.append({"image": str(path), "question": scene.question, "answer": scene.answers[0]})
    lines = "".join(json.dumps(document) + "\n" for document in documents)
    (folder / "scenes.jsonl").write_text(lines)
    (folder / "utils.py").write_text(_UTILS)
    _write(folder, "scenes", "picture", GREEDY)
    _write(folder, "scenes_until", "picture", {**GREEDY, "until": ["re", "\n\n"]})
    _write(folder, "scenes_drawn", "picture", {"max_new_tokens": 8, "temperature": 1.5}, repeats=3)
    _write(folder, "scenes_unknown", "picture", {**GREEDY, "penalty_alpha": 0.6})
    for pictures in ("two_pictures", "no_picture", "video_file"):
        _write(folder, f"scenes_{pictures}", pictures, GREEDY)
    _write(folder, "scenes_choices", "picture", None)
    return documents


def _write(folder: Path, name: str, pictures: str, generation: dict[str, object] | None, repeats: int = 1) -> None:
    metric = "exact_match" if generation is not None else "acc"
    lines = [
        f"task: {name}",
        "dataset_path: json",
        f"dataset_kwargs: {json.dumps({'data_files': {'test': str(folder / 'scenes.jsonl')}})}",
        "test_split: test",
        f"output_type: {'generate_until' if generation is not None else 'multiple_choice'}",
        f"doc_to_visual: !function utils.{pictures}",
        "doc_to_text: !function utils.question",
        f"doc_to_target: {'answer' if generation is not None else 0}",
        f"repeats: {repeats}",
        f"metric_list: {json.dumps([{'metric': metric, 'aggregation': 'mean', 'higher_is_better': True}])}",
        f"lmms_eval_specific_kwargs: {json.dumps({'default': {'pre_prompt': '', 'post_prompt': INSTRUCTION}})}",
    ]
    if generation is None:
        lines.append(f"doc_to_choice: {json.dumps(list(CHOICES))}")
    else:
        lines.append(f"generation_kwargs: {json.dumps(generation)}")
    (folder / f"{name}.yaml").write_text("\n".join(lines) + "\n")
