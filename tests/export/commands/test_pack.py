"""catp-pack: what it refuses, and that its pack installs and answers without a network."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from documents import ROOT
from typer.testing import CliRunner

from catp.export.commands.pack import app
from catp.export.demo import samples
from catp.export.packing import packer
from catp.runtime.files import sha256

RUNNER = CliRunner()
SAMPLE = samples()[0]
NO_INDEX = {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_EXTRA_INDEX_URL": "",
            "PIP_FIND_LINKS": ""}  # fmt: skip
PINNED = ROOT / "constraints" / "pinned.txt"


@pytest.fixture(scope="module")
def demo_bundle(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of these tests' own: its files get second names, which other tests' tools refuse."""
    return Path(shutil.copytree(demo_bundle, tmp_path_factory.mktemp("own") / demo_bundle.name))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--platform", "linux-riscv64"], "accepted: linux-x86_64, linux-aarch64"),
        (["--python", "2.7"], "from 3.11 on"),
        (["--extra", "export"], "accepted: cpu, serve"),
        (["--constraint", "nowhere.txt"], "nowhere.txt: no such file"),
    ],
)
def test_what_it_cannot_do_is_one_line(demo_bundle: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    result = RUNNER.invoke(app, [str(demo_bundle), *arguments, "-o", str(tmp_path / "pack")])
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert message in line and not any(tmp_path.iterdir())


def test_a_taken_folder_and_one_in_the_bundle_are_refused(demo_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "mine").touch()
    for more in ([], ["--overwrite"]):
        result = RUNNER.invoke(app, [str(demo_bundle), "-o", str(tmp_path / "pack"), *more])
        assert result.exit_code == 2 and (tmp_path / "pack" / "mine").is_file()
    result = RUNNER.invoke(app, [str(demo_bundle), "-o", str(demo_bundle / "pack")])
    assert result.exit_code == 2 and "inside the bundle" in result.stderr


def test_without_a_network_nothing_is_published(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in NO_INDEX.items():
        monkeypatch.setenv(name, value)
    result = RUNNER.invoke(app, [str(demo_bundle), "-o", str(tmp_path / "pack")])
    assert result.exit_code == 1 and "can't reach its package index" in result.stderr.splitlines()[-1]
    assert not any(tmp_path.iterdir())


def packed(bundle: Path, output: Path, *arguments: str) -> Path:
    result = RUNNER.invoke(app, [str(bundle), "-o", str(output), "--constraint", str(PINNED), *arguments])
    if "can't reach its package index" in result.output:
        pytest.skip("no package index can be reached")
    assert result.exit_code == 0, result.output
    return output


@pytest.fixture(scope="module")
def pack(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(demo_bundle, tmp_path_factory.mktemp("packs") / "pack")


def install(pack: Path, environment: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """In a network namespace with no network at all, where this process may make one."""
    apart = ["unshare", "--map-root-user", "--net"]
    if shutil.which("unshare") is None or subprocess.run([*apart, "true"], capture_output=True).returncode:
        apart = []
    values = {**os.environ, **NO_INDEX, "PYTHON": sys.executable, **variables}
    command = [*apart, str(pack / "install.sh"), str(environment)]
    return subprocess.run(command, capture_output=True, text=True, env=values)


@pytest.mark.heavy
def test_a_pack_installs_and_answers_without_a_network(pack: Path, tmp_path: Path) -> None:
    moved = pack.rename(pack.parent / "a moved pack")  # it finds its files wherever it lies
    try:
        result = install(moved, tmp_path / "environment")
        assert result.returncode == 0, result.stderr
        command = [str(tmp_path / "environment" / "bin" / "catp-run"), str(moved / "bundle")]
        command += ["--image", str(SAMPLE.image), "--prompt", SAMPLE.prompt]
        clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        answer = subprocess.run(command, capture_output=True, text=True, env=clean, cwd=tmp_path)
        assert answer.stdout.strip() == SAMPLE.answer, answer.stderr
        there = subprocess.run(
            [tmp_path / "environment" / "bin" / "python", "-c", "import catp.runtime as r; print(r.__file__)"],
            capture_output=True, text=True, env=clean, cwd=tmp_path,
        ).stdout  # fmt: skip
        assert Path(there.strip()).is_relative_to(tmp_path / "environment")
    finally:
        moved.rename(pack)


@pytest.mark.heavy
def test_a_wheel_that_was_altered_is_not_installed(pack: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(pack, tmp_path / "pack")
    (wheel,) = copy.glob("wheels/catp_exporter-*.whl")
    wheel.write_bytes(wheel.read_bytes() + b"\0")
    result = install(copy, tmp_path / "environment")
    assert result.returncode != 0 and "HASH" in result.stderr.upper()
    assert not (tmp_path / "environment" / "bin" / "catp-run").exists()


@pytest.mark.heavy
def test_a_bundle_that_was_altered_is_noticed(pack: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(pack, tmp_path / "pack")
    weights = copy / "bundle" / "vision_encoder.onnx_data"
    content = bytearray(weights.read_bytes())
    content[1000] ^= 1
    weights.write_bytes(content)
    result = install(copy, tmp_path / "environment")
    assert result.returncode == 1 and "was altered" in result.stderr and "Installed" not in result.stdout


@pytest.mark.heavy
def test_the_lock_has_every_wheel_with_its_hash(pack: Path) -> None:
    lines = [line for line in (pack / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    hashes = {line.rpartition("sha256:")[2] for line in lines}
    assert hashes == {sha256(path) for path in (pack / "wheels").iterdir()} and len(lines) == len(hashes)


@pytest.mark.heavy
def test_a_pack_for_an_arm_board_has_its_wheels(demo_bundle: Path, tmp_path: Path) -> None:
    made = packed(demo_bundle, tmp_path / "pack", "--platform", "linux-aarch64", "--python", "3.12", "--extra", "serve")
    names = {path.name for path in (made / "wheels").iterdir()}
    assert not any("x86_64" in name for name in names)
    for library in ("onnxruntime", "numpy", "pillow", "ml_dtypes", "pydantic_core"):
        (name,) = (name for name in names if name.startswith(f"{library}-"))
        assert "cp312" in name and "aarch64" in name
    assert any(name.startswith("uvicorn-") for name in names)
    content = json.loads((made / packer.PACK_NAME).read_text())
    assert (content["platform"], content["python"], set(content["wheels"])) == ("linux-aarch64", "3.12", names)
    # Here it says that this is another machine.
    result = install(made, tmp_path / "environment")
    assert result.returncode == 2 and "this pack is for 3.12 aarch64" in result.stderr


@pytest.mark.heavy
def test_a_pack_is_replaced_and_a_folder_of_others_is_not(pack: Path, demo_bundle: Path) -> None:
    before = (pack / "requirements.lock").read_bytes()
    (pack / "requirements.lock").write_text("")
    packed(demo_bundle, pack, "--overwrite")
    assert (pack / "requirements.lock").read_bytes() == before
