"""Recall against its definition, written out in numpy, and catp-eval on pictures with captions."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from catp.calibration.commands.eval import app
from catp.calibration.data.captions import Captions, is_captions, plain_words, read_captions
from catp.calibration.data.errors import DataError
from catp.calibration.retrieval.recall import AT, Setting, recall_of
from catp.export.demo import scenes
from catp.runtime import Pipeline
from catp.runtime.bundle.folder import open_bundle
from catp.runtime.retrieval.ranking import Found, Ranking, top


def captions_of(counts: list[int]) -> Captions:
    image_of = [image for image, count in enumerate(counts) for _ in range(count)]
    texts = tuple(f"text {text}" for text in range(len(image_of)))
    return Captions("made up", tuple(Path(f"{i}.png") for i in range(len(counts))), texts, tuple(image_of))


def by_definition(scores_i: np.ndarray, scores_t: np.ndarray, image_of: list[int]) -> list[float]:
    """The share of rows of which something right is among the k highest: texts of images, then images of texts.

    Args:
        scores_i, scores_t: [I, T], of the two directions.
    """
    found = []
    for k in AT:
        hit = [any(image_of[t] == i for t in np.argsort(-row)[:k]) for i, row in enumerate(scores_i)]
        found.append(float(np.mean(hit)))
    for k in AT:
        hit = [image_of[t] in np.argsort(-column)[:k] for t, column in enumerate(scores_t.T)]
        found.append(float(np.mean(hit)))
    return found


def test_recall_is_what_it_is_defined_as() -> None:
    rng = np.random.default_rng(4)
    captions = captions_of([5, 1, 3] * 14)
    scores = rng.normal(size=(2, len(captions.images), len(captions.texts)))
    for text, image in enumerate(captions.image_of):
        scores[:, image, text] += 1.5
    of_pictures, of_texts = top(scores[0], 12), top(scores[1].T, 12)
    found = Found(
        scores[0],
        Ranking(of_pictures, np.take_along_axis(scores[0], of_pictures, 1)),
        Ranking(of_texts, np.take_along_axis(scores[1].T, of_texts, 1)),
    )
    recall = recall_of(found, captions, Setting(), seed=0)
    wanted = by_definition(scores[0], scores[1], list(captions.image_of))
    shares = [each.share for each in (*recall.texts, *recall.images)]
    np.testing.assert_allclose(shares, wanted)
    assert recall.mean == pytest.approx(np.mean(wanted)) and 0.2 < wanted[0] < wanted[1] < wanted[2] < 1
    assert all(low < each.share < high for each in recall.images[:2] for low, high in [each.interval_95])


@pytest.fixture(scope="module")
def karpathy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("karpathy")
    (folder / "val").mkdir()
    entries = []
    for number, example in enumerate(scenes.examples(12, seed=6)):
        example.image.save(folder / "val" / f"{number}.png")
        # No two are alike, and the first is longer than what is read of it: the letters of "yellow" are tokens.
        longer = "yellow " * 6 if number == 0 else ""
        captions = [f"(what) is {'green ' * number}!{longer}", f"{'black ' * number}at", "square " * (number + 1)][
            : 1 + number % 3
        ]
        entries.append({"image": f"val/{number}.png", "caption": captions, "split": "test"})
    (folder / "test.json").write_text(json.dumps(entries))
    return folder / "test.json"


@pytest.mark.parametrize("bundle", ["clip_bundle", "blip_retrieval_bundle"])
def test_the_command_measures_recall(
    bundle: str, karpathy: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder, output = request.getfixturevalue(bundle), tmp_path / "report.json"
    asked = [str(folder), "--data", str(karpathy), "--batch-size", "5", "-o", str(output), "--json"]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found == json.loads(output.read_text()) and "texts at 10" in result.stderr
    captions, pipeline = read_captions(karpathy, None), Pipeline.load(folder)
    assert (found["images"], found["texts"]) == (12, 24)
    head = pipeline.matching.has_head
    texts = [re.sub(r"[.!\"()*#:;~]", " ", text.lower()) for text in captions.texts] if head else captions.texts
    ids = [pipeline.tokenize(text) for text in texts]
    if head:  # whose official evaluation reads no more
        assert max(map(len, ids)) > 35
        ids = [row if len(row) <= 35 else [*row[:34], row[-1]] for row in ids]
    assert len({tuple(row) for row in ids}) == 24
    vectors = pipeline.embed_images(captions.images)[:, 0], pipeline.matching.embed(ids)
    scores = vectors[0] @ vectors[1].T
    if head:  # 16 of each are read again: all pictures of a text, and some texts of a picture
        pixels = pipeline.preprocess(captions.images)
        seen = [pipeline.see_pixels(pixels[i : i + 1]).for_texts(len(ids)) for i in range(12)]
        logits = np.stack([pipeline.matching.logits(one, ids)[:, 1] for one in seen])
        low = np.sort(scores, axis=1)[:, -16][:, None]
        of_images, of_texts = np.where(scores >= low, scores + logits, -100), scores + logits
    else:
        of_images = of_texts = scores
    wanted = by_definition(of_images, of_texts, list(captions.image_of))
    (row,) = found["settings"]
    np.testing.assert_allclose([each["share"] for each in (*row["texts"], *row["images"])], wanted)
    assert found["rerank"] == (16 if head else 0) and found["text_tokens"] == (35 if head else 77)


def test_each_share_of_the_encoders_work_has_a_row(pruned_clip_bundle: Path, karpathy: Path) -> None:
    asked = [str(pruned_clip_bundle), "--data", str(karpathy), "--encoder-flops", "0.6,0.45", "--limit", "8", "--json"]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["images"] == 8
    assert [row["setting"]["encoder_flops"] for row in found["settings"]] == [0.6, 0.45]
    dense = open_bundle(pruned_clip_bundle).manifest.encoder_pruning.gflops_dense  # type: ignore[union-attr]
    shares = [row["encoder_gflops"] / dense for row in found["settings"]]
    assert shares == pytest.approx([0.6, 0.45], abs=0.05) and "GFLOPs" in result.stderr
    assert found["text_encoder"] is None


def test_what_does_not_fit_is_one_line(clip_bundle: Path, demo_bundle: Path, karpathy: Path, tmp_path: Path) -> None:
    for bundle, asked, message in (
        (clip_bundle, [], "which scores texts and answers no questions; give --data FILE.json"),
        (clip_bundle, ["--data", str(karpathy), "--rerank", "4"], "CLIP has no head"),
        (clip_bundle, ["--data", str(karpathy), "--fraction", "0.5"], "--fraction: not with pictures and captions"),
        (
            clip_bundle,
            ["--data", str(karpathy), "--num-beams", "2", "--prompt-template", "{question}"],
            "--prompt-template, --num-beams: not with pictures and captions",
        ),
        (clip_bundle, ["--rerank", "4"], "--rerank: only with a .json file"),
        (demo_bundle, ["--data", str(karpathy)], "which scores no texts"),
    ):
        found = CliRunner().invoke(app, [str(bundle), *asked])
        assert found.exit_code == 2 and message in found.stderr, found.output
    elsewhere = CliRunner().invoke(app, [str(clip_bundle), "--data", str(karpathy), "--images", str(tmp_path)])
    assert elsewhere.exit_code == 1 and "0.png: no such file" in elsewhere.stderr


def test_captions_are_read_as_karpathy_wrote_them(tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    file.write_text('[{"image": "a.png", "caption": "one"}, {"image": "b.png", "caption": ["two", " ", "three"]}]')
    found = read_captions(file, tmp_path / "val")
    assert found.images == (tmp_path / "val/a.png", tmp_path / "val/b.png")
    assert (found.texts, found.image_of) == (("one", "two", "three"), (0, 1, 1)) and is_captions(str(file))
    for content, message in (
        ("[]", "no pictures in it"),
        ('[{"image": "a", "caption": []}]', "entry 1: a has no caption"),
        ('[{"image": "a", "caption": ["x"]}, {"image": "a", "caption": ["y"]}]', "entry 2: a is there twice"),
        ('[{"caption": ["x"]}]', "0.image"),
        ("[1", "Invalid JSON"),
    ):
        file.write_text(content)
        with pytest.raises(DataError, match=message):
            read_captions(file, None)
    file.write_text('{"questions": []}')
    assert not is_captions(str(file)) and not is_captions(str(tmp_path / "none.json"))


def test_words_are_plain() -> None:
    assert plain_words('A "man" (left): rides;  a bike!\n') == "a man left rides a bike"
    assert plain_words("a, b's " * 20) == " ".join(["a, b's"] * 15)
