"""Triton repositories: what is written, what is refused, and a real tritonserver that answers as the pipeline does."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from servers import IN_TIME, SAMPLES, wait_for
from typer.testing import CliRunner

from catp.export.commands.build import app as build_command
from catp.export.commands.export import app as export_command
from catp.export.triton.repository import write_repository
from catp.runtime import Pipeline, UsageError
from catp.runtime.bundle.folder import open_bundle

WHEEL = "nvidia-pytriton==0.7.0"
"""A wheel of which the server alone is used: the package itself wants an older NumPy."""


def test_a_bundle_becomes_a_model(demo_bundle: Path, tmp_path: Path) -> None:
    bundle = open_bundle(demo_bundle)
    model = write_repository(bundle, tmp_path / "repository")
    assert model == tmp_path / "repository" / demo_bundle.name
    assert {path.name for path in model.iterdir()} == {"config.pbtxt", "1"}
    assert f'name: "{demo_bundle.name}"' in (model / "config.pbtxt").read_text()
    assert open_bundle(model / "1" / "bundle").manifest == bundle.manifest  # every file has its digest
    with pytest.raises(UsageError, match="not empty"):
        write_repository(bundle, tmp_path / "repository")
    (model / "1" / "old").touch()
    write_repository(bundle, tmp_path / "repository", "tensorrt", overwrite=True)
    assert not (model / "1" / "old").exists() and 'string_value: "tensorrt"' in (model / "config.pbtxt").read_text()
    assert [path.name for path in (tmp_path / "repository").iterdir()] == [demo_bundle.name]


def test_what_is_no_model_of_ours_stays(demo_bundle: Path, tmp_path: Path) -> None:
    other = tmp_path / demo_bundle.name
    other.mkdir()
    (other / "weights").touch()
    with pytest.raises(UsageError, match=r"holds no config\.pbtxt"):
        write_repository(open_bundle(demo_bundle), tmp_path, overwrite=True)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="it is a file"):
        write_repository(open_bundle(demo_bundle), tmp_path / "file")
    assert (other / "weights").exists()


def test_other_bundles_are_refused_by_name(retrieval_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="accepted: bundles that answer questions about one picture"):
        write_repository(open_bundle(retrieval_bundle), tmp_path / "repository")
    assert not (tmp_path / "repository").exists()


def test_a_taken_place_is_seen_before_the_work(demo_bundle: Path, tmp_path: Path) -> None:
    write_repository(open_bundle(demo_bundle), tmp_path)
    arguments = [str(demo_bundle), "--target", "tensorrt-rtx", "--triton", str(tmp_path)]
    found = CliRunner().invoke(build_command, arguments)
    assert found.exit_code == 2 and "not empty" in found.output
    assert not (demo_bundle / "engines").exists()


@pytest.fixture(scope="module")
def tritonserver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a real one, unpacked from the wheel."""
    folder = tmp_path_factory.mktemp("triton")
    given = os.environ.get("CATP_PYTRITON_WHEEL")
    if given is None:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), WHEEL]
        got = subprocess.run(command, capture_output=True, text=True, timeout=240)
        wheels = list(folder.glob("*.whl"))
        if got.returncode or not wheels:
            pytest.skip(f"the wheel of {WHEEL} can't be had here")
        given = str(wheels[0])
    with zipfile.ZipFile(given) as wheel:
        wheel.extractall(folder)
    server = folder / "pytriton" / "tritonserver"
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = server / "python_backend_stubs" / python / "triton_python_backend_stub"
    if not stub.exists():
        pytest.skip(f"{WHEEL} has no stub for Python {python}")
    shutil.copy(stub, server / "backends" / "python")
    for program in (server / "bin" / "tritonserver", server / "backends" / "python" / stub.name):
        program.chmod(0o755)
    return server


@contextlib.contextmanager
def serving(server: Path, repository: Path) -> Iterator[httpx.Client]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    # The stub looks for the Python that comes first in PATH, and reads no other variable.
    libraries = [sysconfig.get_config_var("LIBDIR"), server.parent.parent / "nvidia_pytriton.libs"]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
    }
    command = [str(server / "bin" / "tritonserver"), "--model-repository", str(repository)]
    command += ["--backend-directory", str(server / "backends"), "--http-port", str(port), "--allow-grpc", "false"]
    command += ["--allow-metrics", "false", "--strict-readiness", "true", "--disable-auto-complete-config"]
    log = repository.parent / "triton.log"
    with log.open("wb") as output:
        started = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=IN_TIME) as client:

            def ready() -> bool:
                assert started.poll() is None, log.read_text(errors="replace")[-4000:]
                with contextlib.suppress(httpx.TransportError):
                    return client.get("/v2/health/ready").status_code == 200
                return False

            wait_for(ready, "it is not ready")
            yield client
            assert started.poll() is None
    finally:
        started.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            started.wait(20)
        started.kill()
        started.wait()
    assert "PyCapsule" not in log.read_text(errors="replace")  # nothing is complained of at every token


def ask(client: httpx.Client, model: str, image: bytes, prompt: str, **inputs: Any) -> list[dict[str, Any]]:
    body = {"image": list(image), "prompt": list(prompt.encode()), **inputs}
    found = client.post(f"/v2/models/{model}/generate_stream", json=body)
    return [json.loads(line.removeprefix("data: ")) for line in found.text.splitlines() if line.startswith("data: ")]


def pieces(events: list[dict[str, Any]]) -> list[str]:
    """The text of each response; one byte alone is a number in Triton's JSON."""
    given = [event["text"] if isinstance(event["text"], list) else [event["text"]] for event in events]
    return [bytes(text).decode() for text in given]


@pytest.mark.heavy
def test_a_real_server_answers_as_the_pipeline_does(tritonserver: Path, tmp_path: Path) -> None:
    bundle, name = tmp_path / "demo", "demo"
    exported = CliRunner().invoke(export_command, ["-o", str(bundle), "--triton", str(tmp_path / "repository")])
    assert exported.exit_code == 0 and "for Triton" in exported.output, exported.output
    pipeline = Pipeline.load(bundle)
    with serving(tritonserver, tmp_path / "repository") as client:
        described = client.get(f"/v2/models/{name}/config").json()
        assert described["model_transaction_policy"] == {"decoupled": True} and described["backend"] == "python"
        for sample in SAMPLES:
            image = sample.image.read_bytes()
            for ratio, most in ((None, None), (0.0, None), (0.75, 2)):
                inputs = {"ratio": ratio, "max_new_tokens": most}
                given = {key: value for key, value in inputs.items() if value is not None}
                events = ask(client, name, image, sample.prompt, **given)
                wanted = list(pipeline.stream(image, sample.prompt, ratio, max_new_tokens=most))
                assert pieces(events) == [*wanted, ""]
                assert [event["last"] for event in events] == [0] * len(wanted) + [1]
        for image, prompt, inputs, said in (
            (b"no picture", "what?", {}, "not an image"),
            (SAMPLES[0].image.read_bytes(), "what?", {"ratio": 1.5}, "0 <= ratio < 1"),
        ):
            (refused,) = ask(client, name, image, prompt, **inputs)
            assert said in refused["error"] and "Failed to process" not in refused["error"], refused
        assert "".join(pieces(ask(client, name, SAMPLES[0].image.read_bytes(), SAMPLES[0].prompt))) == "a black diamond"
