"""A process that answers questions writes nothing anywhere, and asks nobody."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

IMAGE = Path(__file__).parents[3] / "export" / "demo" / "images" / "scene-a.png"
ASK = (
    "import sys, time; from catp.runtime.commands.run import app\n"
    "try: app()\n"
    "finally: time.sleep(float(sys.stdin.read()))"
)

WATCH = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <netdb.h>
int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **result) {
    fprintf(stderr, "RESOLVED %s\n", node);
    return ((int (*)(const char *, const char *, const struct addrinfo *, struct addrinfo **))
        dlsym(RTLD_NEXT, "getaddrinfo"))(node, service, hints, result);
}
"""
"""Tells of every name that anything in the process looks up."""


def files(root: Path) -> list[str]:
    """All files but the product's own receipts: hashes of the bundle's large files."""
    found = (path for path in root.rglob("*") if not path.is_dir() and path.parent.name != "receipts")
    return sorted(str(path.relative_to(root)) for path in found)


def run(bundle: Path, root: Path, seconds: float, **settings: str) -> subprocess.CompletedProcess[str]:
    """catp-run in a home and a temporary folder of its own, and what is started in the background for a while."""
    for name in ("home", "tmp"):
        (root / name).mkdir(parents=True)
    env = {name: value for name, value in os.environ.items() if not name.startswith(("ORT_", "XDG_"))}
    env |= {"HOME": str(root / "home"), "TMPDIR": str(root / "tmp"), "PYTHONDONTWRITEBYTECODE": "1", **settings}
    command = [sys.executable, "-c", ASK, str(bundle), "--image", str(IMAGE), "--prompt", "a"]
    return subprocess.run(command, input=str(seconds), capture_output=True, text=True, env=env, check=True)


def test_nothing_is_written_and_no_name_is_looked_up(demo_bundle: Path, tmp_path: Path) -> None:
    settings = {}
    if shutil.which("cc"):
        (tmp_path / "watch.c").write_text(WATCH)
        library = tmp_path / "watch.so"
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "watch.c", "-ldl"], check=True)
        settings["LD_PRELOAD"] = str(library)
        look_up = [sys.executable, "-c", "import socket; socket.getaddrinfo('localhost', 80)"]
        seen = subprocess.run(look_up, capture_output=True, text=True, env={**os.environ, **settings}).stderr
        assert "RESOLVED localhost" in seen  # the watch works
    result = run(demo_bundle, tmp_path / "run", 4, **settings)
    assert result.stdout.strip() and result.stderr == ""
    assert files(tmp_path / "run") == []


def test_whoever_wants_telemetry_may_have_it(demo_bundle: Path, tmp_path: Path) -> None:
    """The setting of whoever runs the process wins, and this is how the other test would fail."""
    if sys.platform != "linux":
        pytest.skip("ONNX Runtime has it on Linux")
    run(demo_bundle, tmp_path, 0, ORT_DISABLE_TELEMETRY="0")
    if not files(tmp_path):
        pytest.skip("this ONNX Runtime has no telemetry")
    assert any("onnxruntime" in name for name in files(tmp_path))


@pytest.mark.parametrize("package", ["catp.runtime", "catp.export", "catp.calibration"])
def test_every_way_to_onnx_runtime_comes_by_the_setting(package: str) -> None:
    """Whatever module is imported, its package is first; and no package has imported ONNX Runtime by then."""
    code = (
        f"import os, sys, {package}; print(os.environ['ORT_DISABLE_TELEMETRY'], 'onnxruntime' in sys.modules); "
        "import catp.runtime.providers.onnx_runtime; print('onnxruntime' in sys.modules)"
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith("ORT_")}
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True).stdout
    assert output.split() == ["1", "False", "True"]
