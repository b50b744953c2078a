"""Videos asked about with an encoder that prunes: answers are those that the pipeline gives to each alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner
from videos import LENGTHS, Video, write_questions, write_videos

from catp.calibration.benchmark.costs.cost import qformer_flops
from catp.calibration.benchmark.costs.geometry import read_geometry
from catp.calibration.benchmark.costs.whole import answer_gflops
from catp.calibration.commands.calibrate import app as calibrate
from catp.calibration.commands.eval import app as evaluate
from catp.calibration.encoder import teaching
from catp.calibration.encoder.answering import Asked, answer_all
from catp.export.checkpoints.taught import read_taught
from catp.runtime import EncoderWish, Pipeline
from catp.runtime.bundle.folder import open_bundle

MORE, LESS = EncoderWish(flops=0.95), EncoderWish(flops=0.85)


def answered(pipeline: Pipeline, wish: EncoderWish, **kept: float) -> Callable[[Video, str], str]:
    """Asked about one video alone, as catp-run asks."""

    def answer(video: Video, text: str) -> str:
        prompt = [f"Question: {text} Answer:"]
        return pipeline.generate([video.folder], prompt, encoder=wish, num_beams=1, **kept)[0].answer

    return answer


def test_several_settings_answer_as_each_alone(both_video_bundle: Path, tmp_path: Path) -> None:
    """Answers that are right are each setting's own in turns, so that every setting has some of them."""
    pipeline, videos = Pipeline.load(both_video_bundle), write_videos(tmp_path, 6)
    settings = [
        Asked(pipeline, MORE, 0.0),
        Asked(pipeline, LESS, 0.5),
        Asked(pipeline, MORE, 0.5),
        Asked(pipeline, LESS, keep_mass=0.3),
    ]
    one_by_one = [
        answered(pipeline, asked.wish, **({"keep_mass": 0.3} if asked.keep_mass else {"ratio": asked.ratio or 0.0}))
        for asked in settings
    ]
    questions, wanted = [], {}
    for number, video in enumerate(videos):
        texts = [question.question for question in video.asked()]
        found = np.array([[answer(video, text) for answer in one_by_one] for text in texts])
        right = found[0, number % 4]
        questions += video.asked(right)
        wanted[str(video.folder)] = (found == right).tolist()
    (tmp_path / "empty").mkdir()
    questions[4:4] = Video(tmp_path / "empty", []).asked()
    found = answer_all(questions, settings, "exact match", 5)
    by_video = {key: found.right[np.array(found.images) == key].astype(bool).tolist() for key in wanted}
    assert by_video == wanted and found.right.max(0).min() == 1 and not found.right.all()
    spec = pipeline.manifest.encoder_pruning
    assert spec is not None and found.tokens_kept is not None
    work = [spec.gflops(asked.wish.schedule(spec)) for asked in settings]
    assert found.gflops.tolist() == pytest.approx(work)  # of a frame
    assert found.tokens_kept[:3].tolist() == [24, 12, 12] and 1 < found.tokens_kept[3] < 12
    assert found.skipped == 2 and found.frames == np.mean(LENGTHS)


def test_a_schedule_is_found_and_written(both_video_bundle: Path, video_bundle: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(both_video_bundle, tmp_path / "bundle")
    dense, pruned = Pipeline.load(video_bundle), Pipeline.load(bundle)
    ways = [answered(dense, EncoderWish(), ratio=0.0), *(answered(pruned, wish, ratio=0.0) for wish in (MORE, LESS))]

    def answers(video: Video, text: str) -> list[str]:
        """Whatever both say is right: here it matters what is asked, and what becomes of it."""
        return [way(video, text) for way in ways for _ in range(4)]

    data = write_questions(tmp_path / "own.jsonl", write_videos(tmp_path, 9), answers)
    arguments = ["schedule", str(bundle), "--against", str(video_bundle), "--data", str(data), "--json"]
    arguments += ["--flops", "0.95,0.85", "--ratios", "0", "--max-accuracy-drop", "0.8"]
    result = CliRunner().invoke(calibrate, arguments)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    spec = open_bundle(bundle).manifest.encoder_pruning
    assert spec is not None and spec.confirmed is not None and spec.confirmed.after == 1.0
    assert list(spec.kept_tokens or ()) == found["scores"][-1]["setting"]["kept_tokens"] == list(LESS.schedule(spec))
    assert found["scores"][-1]["answer_gflops"] < found["scores"][0]["answer_gflops"]


def test_eval_compares_shares_of_the_work(both_video_bundle: Path, tmp_path: Path) -> None:
    answer = answered(Pipeline.load(both_video_bundle), LESS, ratio=0.5)
    data = write_questions(tmp_path / "own.jsonl", write_videos(tmp_path, 3), lambda *of: [answer(*of)] * 4)
    arguments = [str(both_video_bundle), "--data", str(data), "--encoder-flops", "0.95,0.85", "--ratios", "0.5"]
    result = CliRunner().invoke(evaluate, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [row["tokens_kept"] for row in found["scores"]] == [12, 12] and found["scores"][1]["accuracy"] == 1.0


def test_the_work_of_an_answer_is_that_of_all_frames(demo_bundle: Path) -> None:
    bundle = open_bundle(demo_bundle)
    geometry, model = read_geometry(bundle), bundle.manifest.model
    videos = bundle.manifest.model_copy(update={"model": model.model_copy(update={"frames": 4})})
    assert answer_gflops(videos, geometry, None, 0.5, 10) == answer_gflops(bundle.manifest, geometry, None, 0.5, 10)
    # Two frames at half the ratio are as many tokens to the language model, and to the projection, as one unpruned.
    more = answer_gflops(videos, geometry, None, 0.5, 10, 2) - answer_gflops(videos, geometry, None, 0, 10, 1)
    vision, qformer = geometry.vision, geometry.qformer
    assert qformer is not None
    tokens, width = vision.tokens, vision.width
    patches = 2 * vision.patches * 3 * vision.patch**2 * width
    layer = 2 * tokens * width * 4 * width + 4 * tokens**2 * width + 4 * tokens * width * vision.feed_forward
    seen = qformer_flops(qformer, vision, 0, 0)
    assert more == pytest.approx((patches + vision.layers * layer + seen) / 1e9)


def test_of_each_video_a_frame_is_looked_at(tmp_path: Path) -> None:
    videos = write_videos(tmp_path, 12)
    (tmp_path / "empty").mkdir()
    asked = [question for video in videos for question in video.asked()]
    asked[2:2] = Video(tmp_path / "empty", []).asked() + Video(tmp_path / "missing", []).asked()

    def places(seed: int) -> list[int]:
        found = list(teaching._pictures(asked, 11, seed, videos=True))
        assert [question for _, question in found] == [videos[0].asked()[0].question] * 11
        frames = [[frame.tobytes() for frame in video.frames] for video in videos]
        return [of_video.index(picture.tobytes()) for of_video, (picture, _) in zip(frames, found)]

    assert places(1) == places(1) != places(2)
    assert set(places(1) + places(2)) == {0, 1, 2}


@pytest.mark.heavy
def test_a_scorer_is_taught(video_checkpoint: Path, tmp_path: Path) -> None:
    data = write_questions(tmp_path / "own.jsonl", write_videos(tmp_path, 24), lambda *_: ["x"])
    output = tmp_path / "out"
    output.mkdir()
    arguments = ["scorer", str(video_checkpoint), "--data", str(data), "--pictures", "10", "--toggles", "4"]
    result = CliRunner().invoke(calibrate, [*arguments, "-o", str(output), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["pictures"] == 10
    assert read_taught(str(output), 1, 60) is not None
