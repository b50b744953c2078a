"""Precision of models that find texts by pictures: against searches written out, and as a user calls it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from catp.calibration.commands.calibrate import app
from catp.calibration.commands.eval import app as eval_app
from catp.calibration.data.captions import read_captions
from catp.calibration.data.matched import DEMO_TEXTS, CaptionList, DemoPictures
from catp.calibration.precision.calibrator import split
from catp.calibration.precision.comparison import BundleAnswers, accuracy_changes, ask, kept_overlap, no_answers
from catp.calibration.precision.ranges.observation import Examples, ObservingProvider, answer_each
from catp.calibration.precision.report import PrecisionReport
from catp.export.demo import scenes
from catp.runtime import Pipeline
from catp.runtime.bundle.folder import open_bundle
from catp.runtime.commands.inspect import app as inspect_app
from catp.runtime.commands.match import app as match_app
from catp.runtime.providers.base import to_host

RUNNER = CliRunner()
FEW = ["--samples", "16", "--questions", "16", "--max-accuracy-drop", "0.9", "--min-kept-overlap", "0.5"]
BUNDLES = ["clip_bundle", "blip_retrieval_bundle", "retrieval_bundle"]
TEXTS = DEMO_TEXTS[:20]


@pytest.fixture(scope="module")
def karpathy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 pictures with a caption each, no two of them alike."""
    folder = tmp_path_factory.mktemp("karpathy")
    entries = []
    for number, example in enumerate(scenes.examples(48, seed=6)):
        example.image.save(folder / f"{number}.png")
        entries.append({"image": f"{number}.png", "caption": [DEMO_TEXTS[number]]})
    (folder / "test.json").write_text(json.dumps(entries))
    return folder / "test.json"


def scores(pipeline: Pipeline, images: list, texts: tuple[str, ...], ratio: float | None) -> np.ndarray:
    """[I, T]: each pair by itself: similarity, and the logit of yes where there is a head that reads both."""
    ids = [pipeline.tokenize(text) for text in texts]
    found = []
    for image in images:
        seen = pipeline.see_pixels(pipeline.preprocess([image]), ratio)
        row = (to_host(seen.vectors)[0] @ pipeline.matching.embed(ids).T).max(0)
        if pipeline.matching.has_head:
            logits = pipeline.matching.logits(seen.for_texts(len(ids)), ids)[:, 1]
            row = np.where(row >= np.sort(row)[-16], row + logits, -100)  # as catp-eval, which reads 16 again
        found.append(row)
    return np.array(found)


@pytest.mark.heavy
@pytest.mark.parametrize("fixture", BUNDLES)
def test_the_best_texts_are_those_of_each_pair_by_itself(fixture: str, request: pytest.FixtureRequest) -> None:
    bundle, asked = request.getfixturevalue(fixture), list(DemoPictures(9, 4))
    pipeline = Pipeline.load(bundle)
    advanced: list[int] = []
    found = ask(bundle, asked, "same best text", 0, 4, advanced.append, TEXTS)
    votes = pipeline.manifest.vote is not None
    assert found.ratios == ((0.0, 0.5) if votes else (0.0,)) and sum(advanced) == 9
    assert found.best is not None and found.accuracy.tolist() == [[1.0] * len(found.ratios)] * 9
    for place, ratio in enumerate(found.ratios):
        wanted = scores(pipeline, [question.image for question in asked], TEXTS, ratio if votes else None)
        assert found.best[:, place].tolist() == wanted.argmax(1).tolist()
    assert len(set(found.best[:, 0].tolist())) > 1  # or else any picture would do
    if votes:
        pixels = [pipeline.preprocess([question.image]) for question in asked]
        kept = [to_host(pipeline.see_pixels(one, 0.5).kept_indices)[0] for one in pixels]
        assert np.sort(found.kept, 1).tolist() == np.sort(kept, 1).tolist()
        assert kept_overlap(found, found) == 1


@pytest.mark.parametrize("fixture", BUNDLES)
def test_recall_is_that_of_catp_eval(fixture: str, karpathy: Path, request: pytest.FixtureRequest) -> None:
    bundle = request.getfixturevalue(fixture)
    asked = list(CaptionList(read_captions(karpathy, None)))
    found = ask(bundle, asked, "recall at 1", 0, 8, lambda _: None)
    ratios = ["--ratios", "0,0.5"] if len(found.ratios) > 1 else []
    result = RUNNER.invoke(eval_app, [str(bundle), "--data", str(karpathy), *ratios, "--json"])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["settings"]
    wanted = [(row["texts"][0]["share"] + row["images"][0]["share"]) / 2 for row in rows]
    assert found.accuracy.mean(0).tolist() == pytest.approx(wanted) and found.best is None
    assert set(found.accuracy.ravel().tolist()) <= {0.0, 0.5, 1.0} and max(wanted) > 0


def test_a_caption_counts_as_right_with_any_picture_of_its_own(
    clip_bundle: Path, karpathy: Path, tmp_path: Path
) -> None:
    """Two captions of one picture, by the vectors; a picture that can't be read counts nowhere."""
    asked = [replace(q, id=str(n)) for n, q in enumerate(CaptionList(read_captions(karpathy, None)))][:12]
    asked += [replace(asked[3], id="12", question=DEMO_TEXTS[40])]
    missing = replace(asked[5], image=tmp_path / "none.png", image_key="none")
    found = ask(clip_bundle, [*asked[:5], missing, *asked[6:]], "recall at 1", 0, 5, lambda _: None)
    left = [*asked[:5], *asked[6:]]
    assert found.images == tuple(q.image_key for q in left)
    pipeline = Pipeline.load(clip_bundle)
    pictures = list(dict.fromkeys(q.image for q in left))
    texts = tuple(q.question for q in asked)
    of = scores(pipeline, pictures, texts, None)
    for row, question in enumerate(left):
        picture, text = pictures.index(question.image), asked.index(question)
        best = asked[int(of[picture].argmax())]
        hits = (best.image == question.image and best is not asked[5]) + (int(of[:, text].argmax()) == picture)
        assert found.accuracy[row, 0] == hits / 2


def test_best_texts_that_change_are_lost() -> None:
    before = BundleAnswers((0.0, 0.5), tuple("abcd"), np.ones((4, 2)), np.zeros((4, 1)), best=np.array([[3, 4]] * 4))
    after = replace(before, best=np.array([[3, 4], [3, 5], [9, 4], [3, 0]]))
    changes = accuracy_changes(before, after, 0)
    assert [(c.before, c.after, c.difference) for c in changes] == [(1, 0.75, -0.25), (1, 0.5, -0.5)]
    assert [c.difference for c in accuracy_changes(before, before, 0)] == [0, 0]
    assert [c.difference for c in accuracy_changes(before, no_answers(before), 0)] == [-1, -1]


@pytest.mark.parametrize("fixture", BUNDLES)
def test_ranges_see_the_bare_text_and_the_kept_tokens(fixture: str, request: pytest.FixtureRequest) -> None:
    bundle, examples = open_bundle(request.getfixturevalue(fixture)), Examples()
    pipeline = Pipeline(bundle, ObservingProvider({}, {}, examples))
    asked = list(DemoPictures(2, 4))
    assert list(answer_each(pipeline, asked, (bundle.manifest.tokens, 3))) == [1, 2]
    for row, question in enumerate(asked):
        for graph in {"text_embedding", "image_text_matching"} & set(bundle.manifest.graphs):
            assert examples.calls[graph][row]["text_ids"].tolist() == [pipeline.tokenize(question.question)]
    if bundle.manifest.vote:
        heads = examples.calls["image_text_matching"]
        assert [call["kept_indices"].shape[1] for call in heads] == [bundle.manifest.tokens, 3]


@pytest.mark.heavy
@pytest.mark.parametrize("fixture", BUNDLES)
def test_int8_bundles_answer_as_before(fixture: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    bundle, output = request.getfixturevalue(fixture), tmp_path / "out"
    arguments = ["--to", "int8", "--for", "cpu", *FEW, "--json", "-o", str(output)]
    result = RUNNER.invoke(app, ["precision", str(bundle), *arguments])
    assert result.exit_code == 0, result.output
    report = PrecisionReport.model_validate_json(result.stdout)
    manifest = open_bundle(output).manifest
    assert {error.graph for error in report.errors} == set(manifest.graphs) - {"image_embedding"}
    assert report.calibration == manifest.calibration and manifest.calibration is not None
    assert (manifest.calibration.metric, manifest.calibration.data) == ("same best text", "demo")
    for name, graph in manifest.graphs.items():
        if name == "image_embedding":  # one product of one row a picture
            assert graph == open_bundle(bundle).manifest.graphs[name]
        else:
            assert graph.quantization is not None and graph.quantization.format == "int8"
    before, after = Pipeline.load(bundle), Pipeline.load(output)
    images = [question.image for question in DemoPictures(6, 4)]
    one, other = (np.array([[m.similarity for m in p.match([i] * 8, TEXTS[:8], 0)] for i in images]).ravel()
                  for p in (before, after))  # fmt: skip
    assert not np.array_equal(one, other) and np.corrcoef(one, other)[0, 1] > 0.99
    printed = RUNNER.invoke(inspect_app, [str(output)]).stdout
    assert "calibrated: same best text at ratio 0 100.0 % before, " in printed and "int8 (fp32), for cpu" in printed
    picture = tmp_path / "a.png"
    images[0].save(picture)  # type: ignore[union-attr]
    found = RUNNER.invoke(match_app, [str(output), "--image", str(picture), "--text", "a red circle", "--json"])
    expected = after.match([picture], ["a red circle"])[0].similarity
    assert json.loads(found.stdout)["similarity"] == pytest.approx(expected, abs=1e-5)
    assert f"Next: catp-match {output}" in " ".join(result.stderr.split())


def test_captions_of_ones_own(clip_bundle: Path, karpathy: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    moved = karpathy.rename(tmp_path / "elsewhere.json")
    options = ["--data", str(moved), "--images", str(karpathy.parent), "--to", "int8", "--for", "cpu", *FEW]
    result = RUNNER.invoke(app, ["precision", str(clip_bundle), *options, "-o", str(output), "--json"])
    moved.rename(karpathy)
    assert result.exit_code == 0, result.output
    found = PrecisionReport.model_validate_json(result.stdout)
    assert found.calibration is not None and found.calibration.metric == "recall at 1"
    assert found.calibration.data == "elsewhere.json" and found.calibration.questions == 16
    assert {error.graph for error in found.errors} == {"vision_encoder", "text_embedding"}


def test_halves_share_no_picture(karpathy: Path) -> None:
    data = CaptionList(read_captions(karpathy, None))
    asked = split(data, 16, 40, 0)
    assert not {q.image_key for q in asked.search} & {q.image_key for q in asked.confirmation} and asked.texts == ()
    assert split(DemoPictures(), 16, 20, 0).texts == DEMO_TEXTS


def test_pictures_without_captions(blip_retrieval_bundle: Path, karpathy: Path, tmp_path: Path) -> None:
    texts, output, folder = tmp_path / "texts.txt", tmp_path / "out", tmp_path / "pictures"
    texts.write_text("a red circle\na blue star\na green cross\n")
    folder.mkdir()
    for path in karpathy.parent.glob("*.png"):
        (folder / path.name).write_bytes(path.read_bytes())
    options = ["--images", str(folder), "--texts", str(texts), "--language", "int8", "--for", "cpu", *FEW]
    arguments = [str(blip_retrieval_bundle), *options, "--no-sensitivity", "-o", str(output)]
    result = RUNNER.invoke(app, ["precision", *arguments])
    assert result.exit_code == 0, result.output
    manifest = open_bundle(output).manifest
    assert [name for name, graph in manifest.graphs.items() if graph.quantization] == [
        "text_embedding",
        "image_text_matching",
    ]
    assert manifest.calibration is not None and manifest.calibration.data == "pictures"


@pytest.mark.heavy
@pytest.mark.parametrize("fixture", BUNDLES)
def test_for_tensorrt_ranges_are_gathered(fixture: str, request: pytest.FixtureRequest, calibrated: Callable) -> None:
    options = ("--to", "int8", "--for", "tensorrt", "--questions", "16", "--no-sensitivity")
    wide = ("--max-accuracy-drop", "0.9", "--min-kept-overlap", "0.5")
    made = calibrated(f"tensorrt-{fixture}", request.getfixturevalue(fixture), *options, *wide)
    manifest = open_bundle(made / "bundle").manifest
    assert manifest.calibration is not None and manifest.calibration.samples == 16
    static = [g for g in manifest.graphs.values() if g.quantization and g.quantization.activations == "static"]
    assert len(static) == len(manifest.graphs) - ("image_embedding" in manifest.graphs)


@pytest.mark.heavy
def test_an_encoder_that_prunes_keeps_its_patches(pruned_clip_bundle: Path, tmp_path: Path) -> None:
    arguments = ["--to", "int8", "--for", "cpu", *FEW, "-o", str(tmp_path / "out")]
    result = RUNNER.invoke(app, ["precision", str(pruned_clip_bundle), *arguments])
    assert result.exit_code == 0, result.output
    found = open_bundle(tmp_path / "out").manifest.calibration
    assert found is not None and found.patch_overlap is not None and 0.7 < found.patch_overlap <= 1


def test_what_costs_too_much_is_not_published(retrieval_bundle: Path, tmp_path: Path) -> None:
    """One layer is left to quantise, so nothing can be kept; it moves votes."""
    output = tmp_path / "out"
    arguments = ["--qformer", "int8", "--for", "cpu", "--samples", "16", "--questions", "30", "--no-sensitivity"]
    budget = ["--min-kept-overlap", "1", "--max-accuracy-drop", "0"]
    left = ["*layer.1*", "*layer.2*", "*value", "*dense", "projection*"]
    excluded = [word for pattern in left for word in ("--exclude", pattern)]
    result = RUNNER.invoke(app, ["precision", str(retrieval_bundle), *arguments, *budget, *excluded, "-o", str(output)])
    assert result.exit_code == 1 and "nothing was published" in result.stderr, result.output
    assert not output.exists()


@pytest.mark.parametrize(
    ("fixture", "arguments", "message"),
    [
        ("clip_bundle", ["--data", "easy-vqa"], "data 'easy-vqa': it is none for CLIP; accepted: demo, a .json file"),
        ("clip_bundle", ["--images", "{folder}"], "data 'demo': it is none for CLIP; accepted: demo"),
        ("clip_bundle", ["--images", "{folder}", "--texts", "{one}"], "give at least two different texts"),
        ("clip_bundle", ["--data", "{json}", "--texts", "{one}"], "it is none for CLIP"),
        ("clip_bundle", ["--qformer", "int8"], "--qformer: this bundle's graphs are vision_encoder, image_embedding"),
        ("retrieval_bundle", ["--decode", "int4"], "give --qformer, --vision or --language"),
        ("nlvr_bundle", ["--texts", "{one}"], "--texts: BLIP for statements about two images finds no texts"),
        ("demo_bundle", ["--data", "{json}"], "test.json"),
    ],
)
def test_what_does_not_fit_is_refused(
    fixture: str,
    arguments: list[str],
    message: str,
    karpathy: Path,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    (tmp_path / "one.txt").write_text("a red circle\na red circle\n")
    given = {"folder": karpathy.parent, "one": tmp_path / "one.txt", "json": karpathy}
    options = [argument.format(**given) for argument in arguments]
    output, bundle = tmp_path / "out", request.getfixturevalue(fixture)
    result = RUNNER.invoke(app, ["precision", str(bundle), "--to", "int8", "--for", "cpu", *options, "-o", str(output)])
    assert result.exit_code == 2 and message in result.stderr, result.output
    assert result.stderr.count("error: ") == 1 and not output.exists()
