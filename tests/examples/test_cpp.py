"""The example in C++: it builds, and gives the tokens of the runtime in Python."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import onnxruntime
import pytest
from documents import ROOT
from PIL import Image

from catp.export.demo import samples
from catp.runtime import Pipeline
from catp.runtime.bundle.folder import open_bundle
from catp.runtime.inputs.images import resize

HEADERS = Path(os.environ.get("ORT_INCLUDE", "/usr/include/onnxruntime"))
LIBRARY = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"), None)

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(shutil.which("make") is None or shutil.which("g++") is None, reason="no make, or no g++"),
    pytest.mark.skipif(
        not (HEADERS / "onnxruntime_cxx_api.h").is_file(),
        reason=f"no headers of ONNX Runtime in {HEADERS} (Debian 13: libonnxruntime-dev); ORT_INCLUDE is another place",
    ),
    pytest.mark.skipif(LIBRARY is None, reason="this ONNX Runtime is no shared library"),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cpp")
    command = ["make", "-C", str(ROOT / "examples" / "cpp"), f"BUILD={folder}", f"ORT_INCLUDE={HEADERS}"]
    result = subprocess.run([*command, "CXX=g++", "CXXFLAGS=-O1 -Wall -Wextra -Werror"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return folder / "answer"


@pytest.fixture
def picture(demo_bundle: Path, tmp_path: Path) -> Path:
    return resized(demo_bundle, tmp_path)


def resized(bundle: Path, folder: Path) -> Path:
    """The sample's picture, of the bundle's size."""
    path = folder / "scene-a.ppm"
    image = Image.open(samples()[0].image).convert("RGB")
    Image.fromarray(resize(image, open_bundle(bundle).manifest.image)).save(path)
    return path


def run(program: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "ORT_LIBRARY": str(LIBRARY)}
    # Random tokens end in the middle of characters.
    return subprocess.run(
        [program, *arguments], capture_output=True, text=True, errors="replace", env=environment, timeout=60
    )


def printed(text: str, what: str) -> list[int]:
    (line,) = (line for line in text.splitlines() if line.startswith(f"{what}: "))
    return [int(number) for number in line.partition(": ")[2].split()]


@pytest.mark.parametrize("fixture", ["demo_bundle", "odd_bundle", "twice_pruned_bundle"])
@pytest.mark.parametrize("ratio", [None, 0.25, 0.9])
def test_tokens_are_those_of_python(
    program: Path, fixture: str, ratio: float | None, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The demo answers alike from wrong positions; the odd model, whose weights are random, does not."""
    bundle, sample = request.getfixturevalue(fixture), samples()[0]
    picture = resized(bundle, tmp_path)
    (wanted,) = Pipeline.load(bundle).generate([sample.image], [sample.prompt], ratio)
    result = run(program, bundle, picture, sample.prompt, *([] if ratio is None else ["--ratio", str(ratio)]))
    assert result.returncode == 0, result.stderr
    assert printed(result.stderr, "kept") == wanted.kept_indices
    assert printed(result.stderr, "tokens") == wanted.token_ids
    assert result.stdout.strip() == wanted.answer


def test_compact_positions_are_those_of_python(program: Path, odd_bundle: Path, tmp_path: Path) -> None:
    copy, picture = shutil.copytree(odd_bundle, tmp_path / "compact"), resized(odd_bundle, tmp_path)
    manifest = json.loads((copy / "catp.json").read_text())
    manifest["pruning"] |= {"positions": "compact", "ratio": 0.75}
    (copy / "catp.json").write_text(json.dumps(manifest))
    (wanted,) = Pipeline.load(copy).generate([samples()[0].image], [samples()[0].prompt])
    result = run(program, copy, picture, samples()[0].prompt)
    assert printed(result.stderr, "tokens") == wanted.token_ids


def test_ids_stand_for_a_prompt_that_it_cannot_read(program: Path, demo_bundle: Path, picture: Path) -> None:
    prompt = "Question: what is in the tottom right? Answer:"
    result = run(program, demo_bundle, picture, prompt)
    assert result.returncode == 1 and "give the prompt's --ids" in result.stderr
    pipeline = Pipeline.load(demo_bundle)
    ids = ",".join(map(str, pipeline.tokenize(prompt)))
    (wanted,) = pipeline.generate([samples()[0].image], [prompt])
    result = run(program, demo_bundle, picture, prompt, "--ids", ids)
    assert printed(result.stderr, "tokens") == wanted.token_ids


def test_a_picture_of_another_size_is_refused(program: Path, demo_bundle: Path, tmp_path: Path) -> None:
    Image.new("RGB", (95, 96)).save(tmp_path / "small.ppm")
    result = run(program, demo_bundle, tmp_path / "small.ppm", samples()[0].prompt)
    assert result.returncode == 1 and result.stderr.startswith("error: ") and "96 x 96" in result.stderr
