"""catp-explain as a user calls it, and what its picture shows."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from typer.testing import CliRunner

from catp.calibration.commands.explain import app
from catp.calibration.explanation.explanation import Explanation, explain
from catp.calibration.explanation.page import Page
from catp.calibration.explanation.patches import patch_size
from catp.calibration.explanation.picture import HEIGHT, WIDTH, headline
from catp.export.demo import samples
from catp.runtime import Pipeline
from catp.runtime.bundle.image_spec import ImageSpec
from catp.runtime.errors import BundleError
from catp.runtime.inputs.images import load_image

RUNNER = CliRunner()
SAMPLE = samples()[0]
PAIR = ["--image", str(SAMPLE.image), "--prompt", SAMPLE.prompt]


@pytest.fixture(scope="module")
def diagnosed(diagnostics_bundle: Path) -> Pipeline:
    return Pipeline.load(diagnostics_bundle)


@pytest.fixture(scope="module")
def explanation(diagnosed: Pipeline) -> Explanation:
    return explain(diagnosed, SAMPLE.image, SAMPLE.prompt, ratio=0.6)


def encoded(pipeline: Pipeline, image: Path | Image.Image) -> dict[str, object]:
    return pipeline.encode(pipeline.preprocess([image]))


def test_the_split_is_the_pipelines(diagnosed: Pipeline, explanation: Explanation) -> None:
    pruned = diagnosed.prune(encoded(diagnosed, SAMPLE.image), diagnosed.num_kept(0.6))
    (kept,) = pruned.kept_indices.numpy().tolist()
    assert explanation.kept.tolist() == kept
    assert sorted(kept + explanation.dropped.tolist()) == list(range(32))
    assert len(explanation.dropped) == 32 - len(kept) == 19
    assert sorted(explanation.best_first[: len(kept)].tolist()) == kept
    scores = explanation.scores.tolist()
    assert explanation.threshold == min(scores[token] for token in kept)
    assert all(scores[token] <= explanation.threshold for token in explanation.dropped)


@pytest.mark.parametrize("positions", ["original", "compact"])
def test_the_answers_are_the_pipelines(diagnosed: Pipeline, positions: str) -> None:
    for sample in samples():
        found = explain(diagnosed, sample.image, sample.prompt, 0.75, positions=positions)
        (full,) = diagnosed.generate([sample.image], [sample.prompt], 0.0, positions)
        (pruned,) = diagnosed.generate([sample.image], [sample.prompt], 0.75, positions)
        assert (found.full_answer, found.answer) == (full.answer, pruned.answer)
        assert found.agree == (full.answer == pruned.answer)
        assert found.positions == positions
        assert headline([found]).endswith("the same answer" if found.agree else "another answer")


def test_the_heat_is_the_mean_attention_of_each_patch(diagnosed: Pipeline, explanation: Explanation) -> None:
    (attention,) = diagnosed.votes(encoded(diagnosed, SAMPLE.image)).outputs["query_attention"].tolist()
    for tokens in (explanation.kept, explanation.dropped, np.array([7])):
        heat = explanation.heat(tokens)
        assert heat.shape == (6, 6)
        for row in range(6):
            for column in range(6):
                # 96 pixels in patches of 16: 1 CLS token, then row by row.
                mean = sum(attention[token][1 + 6 * row + column] for token in tokens) / len(tokens)
                assert heat[row, column] == pytest.approx(mean, abs=1e-6)
        assert heat.sum() + explanation.cls_share(tokens) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("row", "column"), [(0, 4), (4, 0), (2, 5)])
def test_patches_lie_where_the_model_reads_them(diagnosed: Pipeline, row: int, column: int) -> None:
    """The embedding that changes most with a patch's pixels has the place in the list that the heat map gives it."""
    picture = Image.new("RGB", (96, 96), (230, 230, 230))
    before = encoded(diagnosed, picture)["image_embeds"].numpy()[0]
    ImageDraw.Draw(picture).rectangle((16 * column, 16 * row, 16 * column + 15, 16 * row + 15), fill=(40, 90, 200))
    after = encoded(diagnosed, picture)["image_embeds"].numpy()[0]
    changed = np.linalg.norm(after - before, axis=1)[1:].reshape(6, 6)
    assert np.unravel_index(changed.argmax(), changed.shape) == (row, column)


def test_the_image_is_shown_as_the_model_gets_it(diagnosed: Pipeline) -> None:
    wide = load_image(SAMPLE.image).resize((300, 120))
    found = explain(diagnosed, wide, SAMPLE.prompt)
    spec = diagnosed.manifest.image
    normalised = (found.pixels * np.float32(spec.rescale_factor) - spec.image_mean) / spec.image_std
    assert np.allclose(normalised.transpose(2, 0, 1), diagnosed.preprocess([wide])[0], atol=1e-5)


def test_the_bundles_defaults_and_a_share_of_the_votes(diagnosed: Pipeline) -> None:
    default = explain(diagnosed, SAMPLE.image, SAMPLE.prompt)
    assert (default.ratio, default.keep_mass, default.kept_by) == (0.5, None, "ratio 0.5")
    assert default.positions == diagnosed.manifest.pruning.positions
    share = explain(diagnosed, SAMPLE.image, SAMPLE.prompt, keep_mass=0.7)
    assert (share.ratio, share.keep_mass, share.kept_by) == (None, 0.7, "70 % of the votes")
    kept = share.scores[share.kept]
    assert kept.sum() - kept.min() < 0.7 * share.scores.sum() <= kept.sum()


@pytest.mark.parametrize(
    ("height", "width", "patches", "side"),
    [(96, 96, 36, 16), (224, 224, 256, 14), (230, 230, 256, 14), (32, 64, 8, 16)],
)
def test_the_side_of_a_patch(height: int, width: int, patches: int, side: int) -> None:
    spec = ImageSpec(height=height, width=width, resample=3, image_mean=(0, 0, 0), image_std=(1, 1, 1))
    assert patch_size(spec, patches) == side
    with pytest.raises(BundleError, match="7 image tokens"):
        patch_size(spec, 7)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--ratio", "0.5"],
        ["--ratio", "0"],
        ["--ratio", "0.99", "--positions", "compact"],
        ["--keep-mass", "0.6"],
        ["--prompt", "What costs $5 and $6? \n" + "word " * 20 + "W" * 60 + " 図"],
        ["--prompt", ""],
    ],
    ids=lambda arguments: " ".join(arguments)[:20],
)
@pytest.mark.filterwarnings("error")
def test_it_draws_a_page(diagnostics_bundle: Path, tmp_path: Path, arguments: list[str]) -> None:
    output = tmp_path / "explained.png"
    result = RUNNER.invoke(app, [str(diagnostics_bundle), *PAIR, *arguments, "-o", str(output)])
    assert result.exit_code == 0, result.output
    full, pruned = result.stdout.splitlines()
    assert full.startswith("all 32 query tokens: ") and " of 32 (" in pruned
    assert result.stderr.splitlines()[-1] == f"Wrote {output}"  # on a busy machine, steps that last are named before
    assert os.listdir(tmp_path) == ["explained.png"]
    with Image.open(output) as picture:
        picture.load()
        assert picture.format == "PNG" and picture.size == (WIDTH, HEIGHT)
        pixels = np.asarray(picture.convert("RGB"))
    assert (pixels[:20] == 255).all() and (pixels[-20:] == 255).all() and (pixels[:, -20:] == 255).all()
    # The score bars: all kept ones in blue, and dropped ones in orange where there are any.
    bars = pixels[680:715].reshape(-1, 3)
    assert (bars == (0x00, 0x72, 0xB2)).all(1).any()
    assert (bars == (0xE6, 0x9F, 0x00)).all(1).any() == (arguments != ["--ratio", "0"])


def test_json_is_one_line(diagnostics_bundle: Path, diagnosed: Pipeline, tmp_path: Path) -> None:
    output = tmp_path / "explained.PNG"
    result = RUNNER.invoke(app, [str(diagnostics_bundle), *PAIR, "--ratio", "0.6", "-o", str(output), "--json"])
    assert result.exit_code == 0, result.output
    (line,) = result.stdout.splitlines()
    found = json.loads(line)
    (pruned,) = diagnosed.generate([SAMPLE.image], [SAMPLE.prompt], 0.6)
    assert found["kept_indices"] == pruned.kept_indices and found["num_kept"] == 13
    assert found["answer"] == pruned.answer and found["full_answer"] == SAMPLE.answer
    assert found["agree"] == (found["answer"] == found["full_answer"])
    assert found["token_scores"] == diagnosed.votes(encoded(diagnosed, SAMPLE.image)).scores[0].tolist()
    assert (found["method"], found["ratio"], found["positions"]) == ("catp", 0.6, "original")
    assert found["picture"] == str(output) and output.is_file()


def test_a_bundle_without_diagnostics(demo_bundle: Path, tmp_path: Path) -> None:
    result = RUNNER.invoke(app, [str(demo_bundle), *PAIR, "-o", str(tmp_path / "x.png")])
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and "catp-export --diagnostics" in line
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["-o", "x.jpg"], "x.jpg: only PNG is written; give a name that ends in .png", 2),
        (["-o", "x"], "only PNG", 2),
        (["-o", "taken.png"], "the file exists; give another name, or --overwrite", 2),
        (["-o", "folder.png", "--overwrite"], "it is a folder", 2),
        (["-o", "nowhere/x.png"], "make it first", 2),
        (["-o", "x" * 300 + ".png"], "can't write there", 2),
        (["--image", "nowhere.png"], "nowhere.png: no such file", 1),
        (["--image", __file__], "not an image", 1),
        (["--ratio", "1"], "0 <= ratio < 1", 2),
        (["--ratio", "0.5", "--keep-mass", "0.5"], "give one of them", 2),
        (["--keep-mass", "0"], "0 < mass <= 1", 2),
        (["--positions", "sideways"], "compact", 2),
        (["--provider", "abacus"], "accepted: cpu, openvino, auto, cuda", 2),
        (["--prompt", "word " * 400], "at most 224 tokens", 2),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else None,
)
def test_bad_input_is_one_clear_line(
    diagnostics_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
    code: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken.png").write_text("precious")
    Path("folder.png").mkdir()
    result = RUNNER.invoke(app, [str(diagnostics_bundle), *PAIR, *arguments])
    assert result.exit_code == code, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and message in line
    assert not result.stdout
    assert sorted(os.listdir(tmp_path)) == ["folder.png", "taken.png"]
    assert Path("taken.png").read_text() == "precious"


def test_overwrite_replaces_the_file_a_link_points_to(diagnostics_bundle: Path, tmp_path: Path) -> None:
    taken, link = tmp_path / "taken.png", tmp_path / "link.png"
    taken.write_text("old")
    link.symlink_to(taken)
    result = RUNNER.invoke(app, [str(diagnostics_bundle), *PAIR, "-o", str(link), "--overwrite"])
    assert result.exit_code == 0, result.output
    assert link.is_symlink() and Image.open(taken).size == (WIDTH, HEIGHT)


def test_a_full_disk_leaves_the_old_picture(
    diagnostics_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(page: Page, path: Path) -> None:
        path.write_bytes(b"half a picture")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Page, "save", full)
    taken = tmp_path / "taken.png"
    taken.write_text("old")
    result = RUNNER.invoke(app, [str(diagnostics_bundle), *PAIR, "-o", str(taken), "--overwrite"])
    assert result.exit_code == 1 and "No space left on device" in result.stderr
    assert os.listdir(tmp_path) == ["taken.png"] and taken.read_text() == "old"


def test_without_matplotlib(diagnostics_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for module in ("catp.calibration.explanation.picture", "catp.calibration.explanation.page"):
        monkeypatch.delitem(sys.modules, module)
    result = RUNNER.invoke(app, [str(diagnostics_bundle), *PAIR, "-o", str(tmp_path / "x.png")])
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert "catp-explain needs matplotlib" in line and ".[eval]" in line


def test_text_stays_inside_its_box() -> None:
    from matplotlib.font_manager import FontProperties

    page, font = Page(1000, 500), FontProperties(size=16)
    for text in ("short", "many words " * 40, "W" * 500, "i" * 500, "", " \n\t", "a\nb"):
        lines = page.wrap(text, 200, 3, font)
        assert len(lines) <= 3 and all(page._width(line, font) <= 200 for line in lines)
        whole = " ".join(text.split())
        assert "".join(lines).replace(" ", "") == whole.replace(" ", "") or lines[-1].endswith("…")
    assert page.wrap("a\nb", 200, 3, font) == ["a b"]
