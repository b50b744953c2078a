"""An answer loads no module that it does not need: on a small machine each costs more than its code.

Modules are counted, not milliseconds: a test of time says what else the machine was doing.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from catp.export.demo import samples

COUNT = """
import json, sys
from catp.runtime.commands.run import app
try:
    app()
except SystemExit as ended:
    assert not ended.code, ended.code
print(json.dumps(sorted(sys.modules)))
"""

PICTURES = {f"PIL.{name}ImagePlugin" for name in ("Bmp", "Gif", "Jpeg", "Ppm", "Png")}


@pytest.fixture(scope="module")
def loaded(demo_bundle: Path) -> set[str]:
    """Names of all modules that a process has loaded when it has answered; its standard error is no terminal."""
    sample = samples()[0]
    command = [sys.executable, "-c", COUNT, str(demo_bundle), "--image", str(sample.image), "--prompt", sample.prompt]
    environment = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "TTY_COMPATIBLE")}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    answer, modules = result.stdout.splitlines()
    assert answer == sample.answer
    return set(json.loads(modules))


@pytest.mark.parametrize(
    "name",
    [
        "rich", "asyncio", "starlette", "uvicorn", "catp.runtime.server", "catp.runtime.providers.tensorrt",
        "catp.runtime.providers.cuda", "cuda", "onnx", "torch", "catp.export", "catp.calibration",
    ],
)  # fmt: skip
def test_what_an_answer_does_not_need_is_not_loaded(loaded: set[str], name: str) -> None:
    assert [module for module in sorted(loaded) if module == name or module.startswith(f"{name}.")] == []


def test_a_common_picture_is_read_without_the_decoders_of_others(loaded: set[str]) -> None:
    assert {module for module in loaded if module.endswith("ImagePlugin")} == PICTURES


def test_its_modules_are_not_many(loaded: set[str]) -> None:
    assert len(loaded) < 550  # 490 with the pinned versions, of Python 3.11


@pytest.mark.parametrize("form", ["WEBP", "TIFF"])
def test_a_rare_picture_is_read_all_the_same(tmp_path: Path, form: str) -> None:
    """In a process of its own, where nothing has loaded all decoders before."""
    path = tmp_path / "picture"
    Image.new("RGB", (6, 4), (9, 8, 7)).save(path, form)
    code = "import sys; from catp.runtime.inputs.images import load_image; print(load_image(sys.argv[1]).size)"
    result = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert result.stdout.strip() == "(6, 4)", result.stderr
