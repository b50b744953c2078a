"""catp-calibrate provider: what is faster and answers alike is chosen, and the manifest says for which machine."""

from __future__ import annotations

import json
import shutil
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from bundles import relist
from typer.testing import CliRunner

from catp.calibration.benchmark.timing.intervals import Ratio
from catp.calibration.commands.calibrate import app
from catp.calibration.data.demo import DemoScenes
from catp.calibration.placement.engines import Engines
from catp.calibration.placement.search import Measured, choose, first_calls, time_graph
from catp.calibration.precision.assembly import assemble
from catp.runtime import Pipeline
from catp.runtime.bundle.folder import Bundle, open_bundle, write_manifest
from catp.runtime.bundle.placements import ON_CPU, Place, Placement
from catp.runtime.providers.base import Engine
from catp.runtime.system.machine import available_cpus, cpu_model

pytest.importorskip("openvino", reason="an extra of its own: pip install '.[openvino]'")

RUNNER = CliRunner()
PLACE = Place(provider="openvino", device="CPU", precision="f32")
ANOTHER = Placement(cpu="another", cpus=64, versions={}, graphs={"vision_encoder": PLACE})
QUESTIONS = list(islice(DemoScenes(), 6))


@pytest.fixture
def copy(demo_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))


def timed(graph: str, place: Place, milliseconds: float) -> Measured:
    """A measurement beside one of 10 ms on the CPU."""
    ratio = milliseconds / 10
    interval = (0.9 * ratio, 1.1 * ratio)
    return Measured(graph, place, milliseconds, None if place == ON_CPU else Ratio(median=ratio, interval_95=interval))


def test_the_choice_goes_into_the_manifest_beside_the_machine(copy: Path, tmp_path: Path) -> None:
    manifest = open_bundle(copy).manifest
    before = ANOTHER.model_copy(update={"cpu": cpu_model(), "cpus": available_cpus()})
    write_manifest(copy, manifest.model_copy(update={"placements": (before, ANOTHER)}))
    report = tmp_path / "report.json"
    arguments = ["--rounds", "6", "--limit", "3", "--threads", "1", "--report", str(report), "--json"]
    result = RUNNER.invoke(app, ["provider", str(copy), *arguments])
    assert result.exit_code == 0, result.output
    written = json.loads(report.read_text())
    assert written == json.loads(result.stdout.splitlines()[-1])
    assert {(one["graph"], one["place"]["provider"]) for one in written["measured"]} == {
        (graph, provider) for graph in ("vision_encoder", "qformer_voting") for provider in ("cpu", "openvino")
    }
    other, here = open_bundle(copy).manifest.placements
    assert other == ANOTHER and here.holds_for(cpu_model(), available_cpus())
    assert here.model_dump(mode="json") == written["placement"]
    chosen = {one["graph"]: one["place"] for one in written["measured"] if one["chosen"]}
    assert {graph: place.model_dump() for graph, place in here.graphs.items()} == {
        graph: place for graph, place in chosen.items() if place["provider"] != "cpu"
    }
    question = QUESTIONS[0]
    wanted, found = (
        Pipeline.load(copy, name).generate([question.image], [question.prompt]) for name in ("cpu", "auto")
    )
    assert found[0].token_ids == wanted[0].token_ids
    assert not list(copy.glob(".*"))  # nothing temporary is left


def test_graphs_are_timed_on_what_they_read(demo_bundle: Path) -> None:
    engines = Engines(open_bundle(demo_bundle), 1)
    calls = first_calls(engines, QUESTIONS[0])
    assert {graph: sorted(inputs) for graph, inputs in calls.items()} == {
        "vision_encoder": ["pixel_values"],
        "qformer_voting": ["image_embeds", "num_kept"],
    }
    assert calls["vision_encoder"]["pixel_values"].shape[0] == 1
    found = time_graph(engines, "vision_encoder", calls["vision_encoder"], [PLACE], 6, seed=1)
    cpu, other = found
    assert (cpu.place, cpu.ratio, other.place) == (ON_CPU, None, PLACE)
    assert other.ratio is not None and other.ratio.interval_95 is not None
    assert min(cpu.milliseconds, other.milliseconds) > 0


def test_the_fastest_is_chosen_and_what_is_not_clearly_faster_is_not(demo_bundle: Path) -> None:
    engines = Engines(open_bundle(demo_bundle), 1)
    measured = [
        timed("vision_encoder", ON_CPU, 10),
        timed("vision_encoder", PLACE, 5),
        timed("qformer_voting", ON_CPU, 10),
        timed("qformer_voting", PLACE, 9.5),
    ]
    chosen, judged = choose(engines, measured, QUESTIONS)
    assert chosen == {"vision_encoder": PLACE}
    assert {(one.graph, one.place) for one in judged if one.chosen} == {
        ("vision_encoder", PLACE),
        ("qformer_voting", ON_CPU),
    }


class Elsewhere(Engines):
    """Engines whose OpenVINO runs a bundle with other weights."""

    def __init__(self, bundle: Bundle, other: Bundle) -> None:
        super().__init__(bundle, 1)
        self._other = other

    def engine(self, graph: str, place: Place) -> Engine:
        if place == ON_CPU:
            return super().engine(graph, place)
        return self.provider(place).engine(self._other, graph)


def test_what_answers_otherwise_is_refused_however_fast(demo_bundle: Path, copy: Path) -> None:
    weights = copy / "vision_encoder.onnx_data"
    values = np.fromfile(weights, np.float32)
    (values * np.random.default_rng(1).uniform(0.5, 1.5, values.size)).astype(np.float32).tofile(weights)
    relist(copy)
    engines = Elsewhere(open_bundle(demo_bundle), open_bundle(copy))
    measured = [timed("vision_encoder", ON_CPU, 10), timed("vision_encoder", PLACE, 1)]
    chosen, judged = choose(engines, measured, QUESTIONS)
    assert chosen == {}
    refused = {one.place: one.refused for one in judged}
    assert refused[ON_CPU] is None and "of 6 answers change" in str(refused[PLACE])
    assert [one.place for one in judged if one.chosen] == [ON_CPU]


def test_a_quantised_bundle_has_no_placements(demo_bundle: Path, tmp_path: Path) -> None:
    source = open_bundle(demo_bundle)
    placed = Bundle(source.path, source.manifest.model_copy(update={"placements": (ANOTHER,)}))
    (tmp_path / "made").mkdir()
    assert assemble(placed, tmp_path / "made", {}, {}, {}, "max").placements == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--device", "CPU,a toaster that no machine has"],
            "device 'a toaster that no machine has': OpenVINO finds CPU",
        ),
        (["--precision", "f8"], "precision 'f8': accepted: f32, bf16, f16"),
        (["--rounds", "5"], "greater than or equal to 6"),
        (["--report", "/"], "--report"),
    ],
)
def test_wrong_settings_change_nothing(copy: Path, arguments: list[str], message: str) -> None:
    before = (copy / "catp.json").read_bytes()
    result = RUNNER.invoke(app, ["provider", str(copy), *arguments])
    assert result.exit_code == 2 and message in " ".join(result.output.split()), result.output
    assert (copy / "catp.json").read_bytes() == before


def test_without_openvino_it_says_what_to_install(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    result = RUNNER.invoke(app, ["provider", str(copy)])
    assert result.exit_code == 2 and "pip install '.[cpu,openvino]'" in " ".join(result.output.split())


def test_what_scores_texts_is_refused(clip_bundle: Path) -> None:
    result = RUNNER.invoke(app, ["provider", str(clip_bundle)])
    assert result.exit_code == 2 and "generates no text whose tokens" in " ".join(result.output.split())
