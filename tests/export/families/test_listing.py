"""catp-export --list-families against the registry and the bundles that exports made."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from catp.export.commands.export import app
from catp.export.families import FAMILIES
from catp.runtime.bundle.folder import open_bundle


def test_every_family_is_listed_and_nothing_is_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["--list-families"])
    assert result.exit_code == 0 and not any(tmp_path.iterdir())
    assert all(f"{family.name} (model_type {family.model_type})" in result.stdout for family in FAMILIES.values())


@pytest.mark.parametrize(
    "bundle",
    [
        "demo_bundle", "t5_bundle", "instructblip_bundle", "video_bundle", "retrieval_bundle", "vqa_bundle",
        "caption_bundle",
    ],
)  # fmt: skip
def test_the_graphs_listed_are_those_of_a_bundle(bundle: str, request: pytest.FixtureRequest) -> None:
    manifest = open_bundle(request.getfixturevalue(bundle)).manifest
    listed = json.loads(CliRunner().invoke(app, ["--list-families", "--json"]).stdout)
    (found,) = (entry for entry in listed if entry["family"] == manifest.model.family)
    assert found["graphs"] == list(manifest.graphs)
    assert (found["votes_read"] == "image and prompt") == manifest.reads_instruction
    assert found["votes_read"].startswith("nothing") == (manifest.vote is None)
