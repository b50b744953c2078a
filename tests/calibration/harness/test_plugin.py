"""Runs of lmms-eval itself, in an environment of its own: its metrics are those of the pipeline's answers."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from harness_tasks import INSTRUCTION, write_tasks
from servers import NAME, running

from catp.runtime import Pipeline

pytestmark = pytest.mark.heavy  # the environment takes a minute to make, and the harness ten seconds to import

ROOT = Path(__file__).parents[3]
PINNED = ROOT / "constraints" / "lmms.txt"
ENVIRONMENT = ROOT / "build" / "lmms"
PYTHON = ENVIRONMENT / "bin" / "python"


@pytest.fixture(scope="module")
def harness() -> Path:
    """The Python of an environment with lmms-eval, beside all that this one has; it stays for later runs.

    An environment of its own, as the harness needs older versions of protobuf and filelock.
    """
    site = Path(sysconfig.get_path("purelib", vars={"base": str(ENVIRONMENT)}))
    key = hashlib.sha256(f"{sys.prefix} {sys.version} {PINNED.read_text()}".encode()).hexdigest()
    done = ENVIRONMENT / ".installed"
    if not done.exists() or done.read_text() != key:
        shutil.rmtree(ENVIRONMENT, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(ENVIRONMENT)], check=True)
        install = [sys.executable, "-m", "pip", "--python", str(PYTHON), "install", "--quiet", "--no-deps"]
        got = subprocess.run([*install, "--requirement", str(PINNED)], capture_output=True, text=True, timeout=600)
        if got.returncode:
            shutil.rmtree(ENVIRONMENT)
            pytest.skip(f"lmms-eval can't be had here: pip install --no-deps -r {PINNED.relative_to(ROOT)}")
    # The entry point as pyproject.toml has it now, before that of any installed version.
    found = ENVIRONMENT / "catp"
    shutil.rmtree(found, ignore_errors=True)
    found.mkdir()
    (found / "catp").symlink_to(ROOT / "catp")
    describe = [sys.executable, "-c", "from setuptools import setup; setup()", "--quiet", "egg_info", "--egg-base"]
    subprocess.run([*describe, str(found)], check=True, cwd=ROOT, capture_output=True)
    (site / "beside.pth").write_text(f"{found}\n{sysconfig.get_path('purelib')}\n")
    done.write_text(key)
    return PYTHON


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, str]]]:
    folder = tmp_path_factory.mktemp("harness") / "tasks"
    return folder, write_tasks(folder)


def run(python: Path, folder: Path, *arguments: str) -> str:
    """The output of a program that has no network."""
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(folder / "cache"),
        "PYTHONPATH": "",
    }
    done = subprocess.run(
        [str(python), *arguments], env=environment, cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def found(
    harness: Path,
    tasks: tuple[Path, list[dict[str, str]]],
    pipeline: Pipeline,
    demo_bundle: Path,
    retrieval_bundle: Path,
    video_bundle: Path,
) -> dict[str, dict[str, Any]]:
    """The results of each run, all in one process: the harness is imported once."""
    folder, demo = tasks[0].parent, f"bundle={demo_bundle},first_line=true"
    drawn = {"task": "scenes_drawn", "limit": 3}
    kept = {"task": "scenes", "use_cache": str(folder / "answers")}
    with running(pipeline) as server:
        served = f"model={NAME},base_url={server.address}/v1,api_key=none,num_concurrent=4"
        runs = {
            "0": {"model_args": f"{demo},ratio=0", "task": "scenes"},
            "0.75": {"model_args": f"{demo},ratio=0.75", "task": "scenes"},
            "0.75, alone": {"model_args": f"{demo},ratio=0.75", "task": "scenes", "batch_size": "1"},
            "compact": {"model_args": f"{demo},ratio=0.75,positions=compact", "task": "scenes"},
            "mass": {"model_args": f"{demo},keep_mass=0.3", "task": "scenes"},
            "beams": {"model_args": f"{demo},num_beams=3,max_new_tokens=3", "task": "scenes"},
            "beams of the harness": {
                "model_args": demo, "task": "scenes", "gen_kwargs": "num_beams=3,max_new_tokens=3",
            },
            "until": {"model_args": demo, "task": "scenes_until"},
            "drawn": {"model_args": demo, **drawn},
            "drawn, alone": {"model_args": demo, **drawn, "batch_size": 1},
            "drawn, another seed": {"model_args": f"{demo},seed=5", **drawn},
            "kept": {"model_args": f"{demo},ratio=0.75", **kept},
            "kept, again": {"model_args": f"{demo},ratio=0.75", **kept},
            "whole text": {"model_args": f"bundle={demo_bundle}", "task": "scenes"},
            "served": {"model": "openai", "model_args": served, "task": "scenes"},
            "video": {"model_args": f"bundle={video_bundle}", "task": "scenes_two_pictures", "limit": 2},
            "two pictures": {"model_args": demo, "task": "scenes_two_pictures"},
            "no picture": {"model_args": demo, "task": "scenes_no_picture"},
            "video file": {"model_args": demo, "task": "scenes_video_file"},
            "unknown setting": {"model_args": demo, "task": "scenes_unknown"},
            "likelihoods": {"model_args": demo, "task": "scenes_choices"},
            "no text": {"model_args": f"bundle={retrieval_bundle}", "task": "scenes"},
            "no bundle": {"model_args": f"bundle={folder}/none", "task": "scenes"},
            "no such ratio": {"model_args": f"{demo},ratio=1.5", "task": "scenes"},
            "no such positions": {"model_args": f"{demo},positions=old", "task": "scenes"},
            "dense encoder": {"model_args": f"{demo},encoder_flops=0.5", "task": "scenes"},
            "device": {"model_args": demo, "task": "scenes", "device": "cuda"},
            "automatic batch": {"model_args": demo, "task": "scenes", "batch_size": "auto"},
        }  # fmt: skip
        asked, results = folder / "runs.json", folder / "found.json"
        asked.write_text(json.dumps({name: {"model": "catp", **spec} for name, spec in runs.items()}))
        run(harness, folder, str(ROOT / "tests" / "harness_runs.py"), str(tasks[0]), str(asked), str(results))
    found: dict[str, dict[str, Any]] = json.loads(results.read_text())
    return found


def texts(run: Mapping[str, Any]) -> list[str]:
    assert "error" not in run, run["error"]
    return [answer for ((answer,),) in run["answers"]]


def asked_alone(
    pipeline: Pipeline, documents: Sequence[Mapping[str, str]], end: str = "", **settings: Any
) -> list[str]:
    prompts = [f"Question: {document['question']}{end} Answer:" for document in documents]
    return [
        pipeline.generate([document["image"]], [prompt], **{"max_new_tokens": 16, **settings})[0].answer
        for document, prompt in zip(documents, prompts)
    ]


def share_right(answers: Sequence[str], documents: Sequence[Mapping[str, str]]) -> float:
    right = [answer.strip() == document["answer"] for answer, document in zip(answers, documents)]
    return sum(right) / len(right)


@pytest.mark.parametrize("ratio", ["0", "0.75"])
def test_the_metric_of_a_task_is_that_of_the_pipelines_answers(
    ratio: str, found: dict[str, dict[str, Any]], tasks: tuple[Path, list[dict[str, str]]], pipeline: Pipeline
) -> None:
    answers = asked_alone(pipeline, tasks[1], ratio=float(ratio))
    assert texts(found[ratio]) == answers
    assert found[ratio]["results"]["exact_match,none"] == pytest.approx(share_right(answers, tasks[1]))


def test_pruning_is_seen_in_the_metric_and_in_the_tokens(found: dict[str, dict[str, Any]]) -> None:
    whole, pruned = (found[ratio]["results"]["exact_match,none"] for ratio in ("0", "0.75"))
    assert whole == 1 and pruned < 0.9
    counts = [[tokens["input_tokens"] for (tokens,) in found[ratio]["tokens"]] for ratio in ("0", "0.75")]
    assert {all_ - kept for all_, kept in zip(*counts)} == {24}  # of 32 query tokens
    assert texts(found["0.75, alone"]) == texts(found["0.75"])


def test_arguments_of_the_run_reach_the_pipeline(
    found: dict[str, dict[str, Any]], tasks: tuple[Path, list[dict[str, str]]], pipeline: Pipeline
) -> None:
    documents = tasks[1]
    compact = asked_alone(pipeline, documents, ratio=0.75, positions="compact")
    assert texts(found["compact"]) == compact != texts(found["0.75"])
    assert texts(found["mass"]) == asked_alone(pipeline, documents, keep_mass=0.3)
    beams = asked_alone(pipeline, documents, num_beams=3, max_new_tokens=3)
    assert texts(found["beams"]) == texts(found["beams of the harness"]) == beams != texts(found["0"])
    assert texts(found["until"]) == asked_alone(pipeline, documents, stop_strings=["re", "\n\n"])
    assert texts(found["until"]) != texts(found["0"])


def test_drawn_answers_depend_on_seed_and_document_alone(found: dict[str, dict[str, Any]]) -> None:
    answers = found["drawn"]["answers"]
    assert answers == found["drawn, alone"]["answers"] != found["drawn, another seed"]["answers"]
    assert [len(draws) for (draws,) in answers] == [3, 3, 3]
    assert any(len(set(draws)) > 1 for (draws,) in answers)


def test_the_harness_keeps_answers(found: dict[str, dict[str, Any]]) -> None:
    assert texts(found["kept"]) == texts(found["kept, again"]) == texts(found["0.75"])
    assert all(tokens for (tokens,) in found["kept"]["tokens"])
    assert not any(tokens for (tokens,) in found["kept, again"]["tokens"])  # no model was asked


def test_a_server_answers_the_harness_as_the_bundle_does(found: dict[str, dict[str, Any]]) -> None:
    assert texts(found["served"]) == texts(found["whole text"]) != texts(found["0"])
    assert found["served"]["results"] == found["whole text"]["results"]


def test_a_model_of_videos_reads_several_pictures_as_frames(
    found: dict[str, dict[str, Any]], tasks: tuple[Path, list[dict[str, str]]], video_bundle: Path
) -> None:
    pipeline = Pipeline.load(video_bundle)
    expected = [
        pipeline.generate([[document["image"]] * 2], [document["question"] + INSTRUCTION], max_new_tokens=16)[0].answer
        for document in tasks[1][:2]
    ]
    assert texts(found["video"]) == expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("two pictures", "document 0 of test: 2 pictures, and BLIP-2 with a decoder-only language model sees one"),
        ("no picture", "task scenes_no_picture, document 0 of test: no picture, and BLIP-2"),
        ("video file", "the file film.mp4: neither video files nor sounds are decoded here"),
        ("unknown setting", "task scenes_unknown, document 0 of test: task setting penalty_alpha 0.6: unknown"),
        ("likelihoods", "task scenes_choices: it compares likelihoods of given answers"),
        ("no text", "which generates no text; accepted: what answers in words"),
        ("no bundle", "none"),
        ("no such ratio", "ratio 1.5"),
        ("no such positions", "model argument positions 'old'"),
        ("dense encoder", "prunes nothing"),
        ("device", "--device cuda: the provider decides; leave it out"),
        ("automatic batch", "--batch_size auto: give a number"),
    ],
)
def test_what_a_bundle_cannot_do_is_said_in_one_line(name: str, message: str, found: dict[str, dict[str, Any]]) -> None:
    assert found[name]["kind"] == "UsageError"
    assert message in found[name]["error"] and "\n" not in found[name]["error"]


def test_the_harness_finds_the_model_by_its_entry_point(
    harness: Path, tasks: tuple[Path, list[dict[str, str]]], demo_bundle: Path
) -> None:
    folder = tasks[0].parent
    printed = run(
        harness, folder, "-m", "lmms_eval", "--model", "catp",
        "--model_args", f'bundle={demo_bundle},ratio=0,prompt_template="Question: {{text}} Answer:",first_line=true',
        "--tasks", "scenes", "--include_path", str(tasks[0]), "--batch_size", "8", "--limit", "8",
    )  # fmt: skip
    (row,) = (line for line in printed.splitlines() if line.startswith("|scenes"))
    cells = [cell.strip() for cell in row.split("|")]
    assert cells[cells.index("exact_match") + 2] == "1"
