"""A search in many pictures and texts, against a slow one that scores each pair by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from catp.export.demo import scenes
from catp.runtime import Pipeline, UsageError
from catp.runtime.commands.match import app
from catp.runtime.retrieval import gallery as module
from catp.runtime.retrieval.gallery import embed_gallery, embed_texts, read_texts, similarities
from catp.runtime.retrieval.ranking import Found, search, top

WORDS = ["what is red?", "the bottom right", "green", "a red circle and a green one", "is it?", "red", "what is the"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures whose names sort as numbers, one file that is no picture, and one that is hidden."""
    found = tmp_path_factory.mktemp("pictures")
    for number, example in enumerate(scenes.examples(5, seed=3), start=8):
        example.image.save(found / f"{number}.png")
    (found / "9b.png").write_bytes(b"no picture")
    (found / ".hidden").write_text("nothing")
    return found


def pictures(folder: Path) -> list[Path]:
    return [folder / f"{number}.png" for number in range(8, 13)]


def slowly(pipeline: Pipeline, sources: list[Path], rerank: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Similarities [I, T], then scores of both directions, -inf where the head did not look; pair by pair."""
    similarity, logits = np.empty((5, len(WORDS))), np.empty((5, len(WORDS)))
    for i, source in enumerate(sources):
        for t, text in enumerate(WORDS):
            found = pipeline.match([source], [text], ratio=0 if pipeline.manifest.vote else None)[0]
            similarity[i, t] = found.similarity
            ids = [pipeline.tokenize(text)]
            if rerank:
                pixels = pipeline.preprocess([source])
                seen = pipeline.see_pixels(pixels, 0 if pipeline.manifest.vote else None)
                logits[i, t] = pipeline.matching.logits(seen, ids)[0, 1]
    by_picture, by_text = np.full_like(similarity, -np.inf), np.full_like(similarity, -np.inf)
    for i in range(5):
        best = sorted(range(len(WORDS)), key=lambda t: -similarity[i, t])[:rerank]
        by_picture[i, best] = similarity[i, best] + logits[i, best]
    for t in range(len(WORDS)):
        best = sorted(range(5), key=lambda i: -similarity[i, t])[:rerank]
        by_text[best, t] = similarity[best, t] + logits[best, t]
    return similarity, by_picture, by_text


def quickly(pipeline: Pipeline, sources: list[Any], rerank: int, **options: Any) -> Found:
    ids = read_texts(pipeline, WORDS)
    ratio = 0 if pipeline.manifest.vote else None
    gallery = embed_gallery(pipeline, sources, ratio, keeps_tokens=rerank > 0, batch=2, **options)
    return search(gallery, ids, similarities(gallery.vectors, embed_texts(pipeline, ids, 3)), 2, rerank, rows=2)


@pytest.mark.parametrize("kept_bytes", [1 << 30, 30_000, 0])
@pytest.mark.parametrize("bundle", ["blip_retrieval_bundle", "retrieval_bundle"])
def test_a_search_finds_what_pair_by_pair_is_best(
    bundle: str, folder: Path, request: pytest.FixtureRequest, kept_bytes: int
) -> None:
    pipeline = Pipeline.load(request.getfixturevalue(bundle))
    similarity, by_picture, by_text = slowly(pipeline, pictures(folder), rerank=3)
    found = quickly(pipeline, pictures(folder), rerank=3, kept_bytes=kept_bytes)
    np.testing.assert_allclose(found.similarity, similarity, atol=1e-5)
    for ranking, wanted in ((found.texts, by_picture), (found.pictures, by_text.T)):
        assert ranking.best.shape == (len(wanted), 3)
        for best, scores, row in zip(ranking.best, ranking.scores, wanted):
            np.testing.assert_allclose(scores, np.sort(row)[::-1][:3], atol=1e-4)
            np.testing.assert_allclose(row[best], scores, atol=1e-4)
    # The head has another opinion than the similarities: or else this shows nothing.
    assert (found.texts.best != top(found.similarity, 3)).any()


def test_only_so_many_bytes_of_image_tokens_are_kept(blip_retrieval_bundle: Path, folder: Path) -> None:
    pipeline = Pipeline.load(blip_retrieval_bundle)
    one = 50 * 60 * 4 + 50 * 8 + 20 * 4
    found = embed_gallery(pipeline, pictures(folder), keeps_tokens=True, batch=2, kept_bytes=2 * one + 7)
    assert sorted(found.kept) == [0, 1]
    again = found.look_again(3)
    np.testing.assert_allclose(again.vectors, found.vectors[3:4], atol=1e-6)


def test_clip_searches_by_similarity_alone(clip_bundle: Path, folder: Path) -> None:
    pipeline = Pipeline.load(clip_bundle)
    similarity, _, _ = slowly(pipeline, pictures(folder), rerank=0)
    found = quickly(pipeline, pictures(folder), rerank=0)
    np.testing.assert_allclose(found.similarity, similarity, atol=1e-5)
    np.testing.assert_array_equal(found.texts.best, np.argsort(-found.similarity, axis=1, kind="stable")[:, :2])
    np.testing.assert_array_equal(found.pictures.best, np.argsort(-found.similarity.T, axis=1, kind="stable")[:, :2])
    with pytest.raises(UsageError, match="CLIP has no head that reads text and image at once"):
        quickly(pipeline, pictures(folder), rerank=2)


def test_long_texts_are_cut_before_their_end(clip_bundle: Path) -> None:
    pipeline = Pipeline.load(clip_bundle)
    (whole,), (cut,) = read_texts(pipeline, ["red " * 20]), read_texts(pipeline, ["red " * 20], most=9)
    assert cut == [*whole[:8], whole[-1]] and len(whole) > 9
    with pytest.raises(UsageError, match="and this model reads 77; give a shorter one"):
        read_texts(pipeline, ["red " * 100])


def test_more_similarities_than_memory_is_meant_for_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.ones((3, 1, 4), np.float32)
    monkeypatch.setattr(module, "MATRIX_BYTES", 3 * 5 * 4)
    assert similarities(vectors, np.ones((5, 4), np.float32)).shape == (3, 5)
    with pytest.raises(UsageError, match="3 images and 6 texts: their similarities take"):
        similarities(vectors, np.ones((6, 4), np.float32))


def test_the_command_prints_the_best_and_writes_all(blip_retrieval_bundle: Path, folder: Path, tmp_path: Path) -> None:
    texts, scores = tmp_path / "texts.txt", tmp_path / "scores.npz"
    texts.write_text("\n\n".join(WORDS))
    asked = [str(blip_retrieval_bundle), "--images", str(folder), "--texts", str(texts), "--rerank", "3", "--best", "2"]
    found = CliRunner().invoke(app, [*asked, "-o", str(scores), "--json"])
    assert found.exit_code == 0, found.output
    assert found.stderr.count("9b.png") == 1 and "it is left out" in found.stderr
    lines = [json.loads(line) for line in found.stdout.splitlines()]
    assert [Path(line["image"]).name for line in lines[:5]] == [path.name for path in pictures(folder)]
    assert [line["text"] for line in lines[5:]] == WORDS
    written = np.load(scores)
    assert written["similarity"].shape == (5, 7) and written["texts"].tolist() == WORDS
    for row, line in enumerate(lines[:5]):
        assert [hit["text"] for hit in line["best"]] == [WORDS[at] for at in written["texts_of_images"][row, :2]]
        assert [hit["score"] for hit in line["best"]] == pytest.approx(written["scores_of_images"][row, :2].tolist())
    plain = CliRunner().invoke(app, asked)
    assert (
        plain.stdout.splitlines()[0] == f"image {pictures(folder)[0]}" and plain.stdout.count("  ") == 2 * (5 + 7) * 2
    )


REFUSED = {
    "no texts": (["--images", "F"], "--texts missing"),
    "no images": (["--texts", "T"], "--images missing"),
    "both kinds": (["--images", "F", "--texts", "T", "--image", "a.png"], "--image: not with --images and --texts"),
    "no folder": (["--images", "F/none", "--texts", "T"], "no such folder"),
    "a text without image": (["--text", "red"], "--image missing for pairs"),
    "classes with texts": (["--image", "a.png", "--classes", "a,b", "--text", "red"], "--text: not with"),
    "classes of a head": (["--image", "a.png", "--classes", "a,b"], "which has no scale for classes"),
    "rerank of pairs": (["--image", "a.png", "--text", "a", "--rerank", "3"], "--rerank: not with"),
    "another format": (["--images", "F", "--texts", "T", "-o", "x.csv"], "give such a name"),
    "a template alone": (["--image", "a.png", "--template", "{}"], "--classes missing"),
}


@pytest.mark.parametrize(("asked", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_go_together_is_one_line(
    blip_retrieval_bundle: Path, folder: Path, tmp_path: Path, asked: list[str], message: str
) -> None:
    (tmp_path / "t.txt").write_text("red\n")
    filled = [{"F": str(folder), "T": str(tmp_path / "t.txt")}.get(part, part) for part in asked]
    filled = [part.replace("F/none", str(folder / "none")) for part in filled]
    found = CliRunner().invoke(app, [str(blip_retrieval_bundle), *filled])
    assert found.exit_code == 2 and message in found.stderr and found.stderr.strip().count("\n") == 0


def test_classes_are_printed_best_first(clip_bundle: Path, folder: Path) -> None:
    asked = [str(clip_bundle), "--image", str(pictures(folder)[0]), "--classes", "red,green,blue"]
    plain = CliRunner().invoke(app, [*asked, "--template", "a {}", "--template", "{}"])
    assert plain.exit_code == 0, plain.output
    shares = [float(line.split()[0]) for line in plain.stdout.splitlines()[1:]]
    assert len(shares) == 3 and shares == sorted(shares, reverse=True)
    (line,) = CliRunner().invoke(app, [*asked, "--json"]).stdout.splitlines()
    found = json.loads(line)
    assert sum(found["probabilities"].values()) == pytest.approx(1) and found["label"] in found["probabilities"]
