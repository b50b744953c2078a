"""--provider auto: the bundle's choice for this machine, and nothing else's."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from bundles import edit_manifest

from catp.runtime.bundle.folder import Bundle, open_bundle
from catp.runtime.bundle.placements import Place, Placement
from catp.runtime.errors import BundleError
from catp.runtime.providers import open_provider
from catp.runtime.providers.onnx_runtime import OrtEngine
from catp.runtime.system.machine import available_cpus, cpu_model

pytest.importorskip("openvino", reason="an extra of its own: pip install '.[openvino]'")

from catp.runtime.providers.openvino.provider import OpenVinoEngine

ON_OPENVINO = Place(provider="openvino", device="CPU", precision="f32")
HERE = Placement(cpu=cpu_model(), cpus=available_cpus(), versions={}, graphs={"vision_encoder": ON_OPENVINO})


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What the provider logs."""
    found: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    logger, handler = logging.getLogger("catp.runtime.providers.automatic"), Kept()
    logger.addHandler(handler)
    yield found
    logger.removeHandler(handler)


def placed(bundle: Path, *placements: Placement) -> Bundle:
    opened = open_bundle(bundle)
    return replace(opened, manifest=opened.manifest.model_copy(update={"placements": placements}))


def kinds(bundle: Bundle) -> list[type]:
    provider = open_provider("auto", threads=1)
    return [type(provider.engine(bundle, graph)) for graph in bundle.manifest.graphs]


def test_the_choice_for_this_machine_is_followed(demo_bundle: Path) -> None:
    other = HERE.model_copy(update={"cpu": "another", "graphs": {"qformer_voting": ON_OPENVINO}})
    assert kinds(placed(demo_bundle, other, HERE)) == [OpenVinoEngine, OrtEngine, OrtEngine]


@pytest.mark.parametrize("change", [{"cpu": "another"}, {"cpus": HERE.cpus + 1}], ids=str)
def test_another_machine_runs_all_in_onnx_runtime(
    demo_bundle: Path, change: dict[str, object], said: list[str]
) -> None:
    assert kinds(placed(demo_bundle, HERE.model_copy(update=change))) == [OrtEngine] * 3
    assert kinds(open_bundle(demo_bundle)) == [OrtEngine] * 3
    assert said == []


def test_the_measured_settings_count_not_those_of_the_environment(
    demo_bundle: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    monkeypatch.setenv("CATP_OPENVINO_DEVICE", "toaster")
    assert kinds(placed(demo_bundle, HERE))[0] is OpenVinoEngine and said == []


def test_a_device_that_is_gone_is_said_once(demo_bundle: Path, said: list[str]) -> None:
    gone = Place(provider="openvino", device="NPU.7", precision="f16")
    graphs = {"vision_encoder": gone, "qformer_voting": gone}
    assert kinds(placed(demo_bundle, HERE.model_copy(update={"graphs": graphs}))) == [OrtEngine] * 3
    (line,) = said
    assert (
        "names openvino (NPU.7, f16) for this machine, ONNX Runtime takes its place: provider openvino: device" in line
    )


def test_without_openvino_all_runs_in_onnx_runtime(
    demo_bundle: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert kinds(placed(demo_bundle, HERE)) == [OrtEngine] * 3
    assert len(said) == 1 and "OpenVINO is not installed" in said[0]


def test_a_manifest_keeps_placements(demo_bundle: Path) -> None:
    manifest = placed(demo_bundle, HERE).manifest
    assert type(manifest).model_validate_json(manifest.model_dump_json()) == manifest
    assert "placements" not in open_bundle(demo_bundle).manifest.model_dump()  # older programs know no such field


def test_a_placement_of_an_unknown_graph_is_refused(demo_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    wrong = HERE.model_copy(update={"graphs": {"abacus": ON_OPENVINO}})
    edit_manifest(folder, placements=[wrong.model_dump(mode="json")])
    with pytest.raises(BundleError, match=r"placements: 'abacus' is no graph of the bundle"):
        open_bundle(folder)
