"""catp-build as a user calls it: real TensorRT-RTX builds, which need no GPU."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from typer.testing import CliRunner

from catp.export.commands.build import app, parse_size
from catp.export.commands.export import app as export_app
from catp.export.engines import builder
from catp.runtime import BundleError, UsageError
from catp.runtime.bundle.chains import GRAPHS
from catp.runtime.bundle.engine_sets import choose_set, open_set, set_folders
from catp.runtime.bundle.folder import open_bundle
from catp.runtime.commands.inspect import app as inspect_app
from catp.runtime.files import sha256

trt = pytest.importorskip("tensorrt_rtx")
RUNNER = CliRunner()
ARGUMENTS = ["--target", "tensorrt-rtx", "--compute-capability", "8.6"]


def build(bundle: Path, *arguments: str) -> dict[str, Any]:
    result = RUNNER.invoke(app, [str(bundle), *ARGUMENTS, *arguments, "--json"])
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def built(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of its own with engines."""
    folder = tmp_path_factory.mktemp("built") / "bundle"
    shutil.copytree(demo_bundle, folder, copy_function=shutil.copy)
    build(folder)
    return folder


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "bundle"))


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The graphs that TensorRT was asked to build since."""
    asked: list[str] = []
    original = builder._serialized

    def note(target: Any, request: Any, network: Any) -> Any:
        asked.append(request.graph)
        return original(target, request, network)

    monkeypatch.setattr(builder, "_serialized", note)
    return asked


@pytest.mark.parametrize(
    ("precision", "capability"),
    [
        ("fp32", "8.6"),
        ("fp16", "8.9"),
        *(
            pytest.param(*other, marks=pytest.mark.heavy)
            for other in (("fp32", "8.9"), ("fp16", "8.6"), ("bf16", "8.6"), ("bf16", "8.9"))
        ),
    ],
)
def test_every_graph_builds(precision: str, capability: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    name, cache = {
        "fp32": ("demo_bundle", "float32"),
        "fp16": ("half_bundle", "float16"),
        "bf16": ("bf16_bundle", "bfloat16"),
    }[precision]
    source = request.getfixturevalue(name)
    bundle = Path(shutil.copytree(source, tmp_path / "bundle", ignore=shutil.ignore_patterns("engines")))
    arguments = ["--target", "tensorrt-rtx", "--compute-capability", capability]
    result = RUNNER.invoke(app, [str(bundle), *arguments])
    assert result.exit_code == 0, result.output
    (folder,) = set_folders(open_bundle(bundle))
    assert folder.name.startswith(f"tensorrt-rtx-{trt.__version__}-sm{capability.replace('.', '')}-")
    engines = open_set(open_bundle(bundle), folder)
    for graph in GRAPHS:
        assert engines.plan(graph).read_bytes()[:4] == b"vtrt"
        assert graph in result.output
    language_model = engines.plans["language_model"]
    assert language_model.layers["KV_CACHE_UPDATE"] == 4
    assert {t.dtype for t in language_model.inputs if t.name.startswith("past_key_values.")} == {cache}
    assert {t.dtype for t in language_model.outputs if t.name.startswith("present.")} == {cache}


def test_sidecars_say_what_the_network_has(built: Path) -> None:
    """Parsed anew with TensorRT's own API alone, no code of ours."""
    bundle = open_bundle(built)
    engines = open_set(bundle, set_folders(bundle)[0])
    for name, plan in engines.plans.items():
        model = onnx.load(bundle.graph_file(name), load_external_data=False)
        for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
            for dimension in value.type.tensor_type.shape.dim:
                if dimension.dim_param == "max_length":
                    dimension.dim_value = 128
        logger = trt.Logger(trt.Logger.ERROR)
        network = trt.Builder(logger).create_network(0)
        parser = trt.OnnxParser(network, logger)
        assert parser.parse(model.SerializeToString(), str(bundle.graph_file(name)))
        dtypes = {trt.DataType.FLOAT: "float32", trt.DataType.INT64: "int64"}
        for specs, count, get in (
            (plan.inputs, network.num_inputs, network.get_input),
            (plan.outputs, network.num_outputs, network.get_output),
        ):
            assert len(specs) == count
            for index, spec in enumerate(specs):
                tensor = get(index)
                assert (spec.name, spec.dtype) == (tensor.name, dtypes[tensor.dtype])
                assert [d if isinstance(d, int) else -1 for d in spec.shape] == list(tensor.shape)
        layers = [network.get_layer(index) for index in range(network.num_layers)]
        assert sum(plan.layers.values()) == len(layers)
        updates = [layer for layer in layers if layer.type == trt.LayerType.KV_CACHE_UPDATE]
        assert plan.aliases == {layer.get_output(0).name: layer.get_input(0).name for layer in updates}
        for profile in plan.request.profiles:
            assert {*profile.shapes, *profile.values} == {tensor.name for tensor in plan.inputs}
        assert plan.plan.size == engines.plan(name).stat().st_size
        assert plan.request.onnx_sha256 == sha256(bundle.graph_file(name))
        assert plan.built_by["polygraphy"]
    assert plan.aliases["present.1.value"] == "past_key_values.1.value"


def test_the_second_call_builds_nothing(copy: Path, builds: list[str]) -> None:
    assert build(copy)["built"] == []
    assert builds == []
    result = RUNNER.invoke(app, [str(copy), *ARGUMENTS])
    assert "Up to date" in result.stderr


def test_only_the_graph_that_changed_is_built(copy: Path, builds: list[str]) -> None:
    path = copy / "vision_encoder.onnx"
    model = onnx.load(path, load_external_data=False)
    model.doc_string = "touched"
    onnx.save(model, path)
    manifest = json.loads((copy / "catp.json").read_text())
    manifest["graphs"]["vision_encoder"]["file"] |= {"size": path.stat().st_size, "sha256": sha256(path)}
    (copy / "catp.json").write_text(json.dumps(manifest))
    bundle = open_bundle(copy)
    version = trt.__version__
    with pytest.raises(UsageError, match="was built from other graphs"):
        choose_set(bundle, "tensorrt-rtx", version, "8.6")
    assert build(copy)["built"] == builds == ["vision_encoder"]
    assert choose_set(bundle, "tensorrt-rtx", version, "8.6").is_current(bundle)
    assert len(set_folders(bundle)) == 2


def test_another_length_builds_the_language_model_alone(copy: Path, builds: list[str]) -> None:
    assert build(copy, "--max-length", "160")["built"] == builds == ["language_model"]


def test_a_flipped_byte_in_a_plan_is_refused_and_mended(copy: Path, builds: list[str]) -> None:
    bundle = open_bundle(copy)
    (folder,) = set_folders(bundle)
    path = folder / "language_model.engine"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"language_model\.engine: it was altered"):
        open_set(bundle, folder).plan("language_model")
    inspected = RUNNER.invoke(inspect_app, [str(copy)])
    assert "language_model.engine: it was altered" in inspected.stdout
    assert build(copy)["built"] == builds == ["language_model"]
    open_set(bundle, folder).plan("language_model")


def test_a_flipped_byte_in_a_sidecar_is_refused_and_only_that_plan_is_built_again(
    copy: Path, builds: list[str]
) -> None:
    bundle = open_bundle(copy)
    (folder,) = set_folders(bundle)
    path = folder / "qformer_voting.json"
    path.write_text(path.read_text().replace('"8.6"', '"8.9"'))
    with pytest.raises(BundleError, match=r"qformer_voting\.json: it was altered"):
        choose_set(bundle, "tensorrt-rtx", trt.__version__, "8.6")
    assert build(copy)["built"] == builds == ["qformer_voting"]


def test_a_set_under_another_name_is_refused(copy: Path) -> None:
    bundle = open_bundle(copy)
    (folder,) = set_folders(bundle)
    renamed = folder.rename(folder.with_name(folder.name.replace("sm86", "sm89")))
    with pytest.raises(BundleError, match="not the ones its name stands for"):
        open_set(bundle, renamed)


def test_the_set_that_fits_is_chosen(copy: Path) -> None:
    bundle = open_bundle(copy)
    (folder,) = set_folders(bundle)
    assert choose_set(bundle, "tensorrt-rtx", trt.__version__, "8.6", folder.name).folder == folder
    for arguments, message in (
        (("tensorrt", trt.__version__, "8.6"), "is for tensorrt-rtx"),
        (("tensorrt-rtx", "0.1", "8.6"), "is for version"),
        (("tensorrt-rtx", trt.__version__, "12.0"), "is for compute capability 8.6"),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            choose_set(bundle, *arguments)
        assert f"catp-build {copy} --target {arguments[0]}" in str(caught.value)
    with pytest.raises(UsageError, match="has none of that name"):
        choose_set(bundle, "tensorrt-rtx", trt.__version__, "8.6", "other")
    newer = Path(build(copy, "--max-length", "160")["engines"])
    assert choose_set(bundle, "tensorrt-rtx", trt.__version__, "8.6").folder == newer


@pytest.mark.heavy  # exports twice
def test_a_new_export_takes_along_the_plans_that_it_can_use(copy: Path, builds: list[str]) -> None:
    result = RUNNER.invoke(export_app, ["--method", "l2-norm", "-o", str(copy), "--overwrite"])
    assert result.exit_code == 0, result.output
    assert build(copy)["built"] == builds == ["qformer_voting"]


def test_plans_that_were_deleted_are_built_again(copy: Path, builds: list[str]) -> None:
    for path in copy.glob("engines/*/*.engine"):
        path.unlink()
    assert set(build(copy)["built"]) == set(GRAPHS)


def test_a_bundle_that_keeps_a_share_of_the_votes_needs_every_ratio(copy: Path) -> None:
    manifest = json.loads((copy / "catp.json").read_text())
    manifest["pruning"]["keep_mass"] = 0.9
    (copy / "catp.json").write_text(json.dumps(manifest))
    result = RUNNER.invoke(app, [str(copy), *ARGUMENTS, "--fixed-ratio"])
    assert result.exit_code == 2 and "leave --fixed-ratio out" in " ".join(result.stderr.split())


def test_a_process_builds_for_one_target(demo_bundle: Path) -> None:
    code = (
        "import sys, types; from catp.export.engines.targets import open_target\n"
        "sys.modules['tensorrt'] = types.SimpleNamespace(__version__='11')\n"
        "open_target('tensorrt-rtx')\nopen_target('tensorrt')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "this process built for the other target before" in result.stderr


def test_a_baked_ratio_is_recorded(copy: Path) -> None:
    plans = build(copy, "--ratio", "0.75", "--fixed-ratio")["plans"]
    assert plans["qformer_voting"]["request"]["fixed"] == {"num_kept": 8}
    assert [tensor["name"] for tensor in plans["qformer_voting"]["inputs"]] == ["image_embeds"]


def test_an_interrupted_build_leaves_nothing_that_loads(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))

    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(builder, "write_sidecar", interrupt)
    with pytest.raises(KeyboardInterrupt):
        builder.build_engines(bundle, "tensorrt-rtx", ["8.6"])
    assert list((bundle / "engines").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--compute-capability", "9.0"], "Hopper is not listed"),
        (["--max-length", "64"], "do not fit; give at least 96"),
        (["--max-batch", "0"], "--max-batch 0: give 1 to"),
        (["--ratio", "1.5"], "ratio 1.5"),
        (["--workspace", "much"], "such as 4GiB"),
        (["--target", "openvino"], "tensorrt-rtx"),
    ],
)
def test_what_can_not_be_built_exits_2(demo_bundle: Path, arguments: list[str], message: str) -> None:
    result = RUNNER.invoke(app, [str(demo_bundle), *ARGUMENTS, *arguments], env={"COLUMNS": "300"})
    assert result.exit_code == 2, result.output
    assert message in result.stderr and "Traceback" not in result.output
    assert not (demo_bundle / "engines").exists()


def test_a_target_that_is_not_installed_names_the_extra(demo_bundle: Path) -> None:
    code = "import sys; sys.modules['tensorrt'] = None\nfrom catp.export.commands.build import app; app()"
    command = [sys.executable, "-c", code, str(demo_bundle), "--target", "tensorrt"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert "pip install '.[tensorrt,build]'" in result.stderr and "NVIDIA's own package index" in result.stderr


def test_the_printed_commands_build_the_same_plan(copy: Path, tmp_path: Path) -> None:
    result = RUNNER.invoke(app, [str(copy), *ARGUMENTS, "--fixed-ratio", "--print-commands"])
    assert result.exit_code == 0, result.output
    lines = [line for line in result.stdout.splitlines() if "language_model" in line]
    assert len(lines) == 2
    script = f"export PATH={Path(sys.executable).parent}:$PATH\n" + "\n".join(lines)
    run = subprocess.run(["bash", "-ec", script], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    ours = Path(build(copy, "--fixed-ratio")["engines"]) / "language_model.engine"
    theirs = tmp_path / "prepared" / "language_model.engine"
    assert theirs.read_bytes()[:4] == b"vtrt"
    assert theirs.stat().st_size == ours.stat().st_size


def test_sizes() -> None:
    assert [parse_size(text) for text in ("4GiB", "512 MiB", "1e9", "2gb", "64k")] == [
        4 * 2**30,
        512 * 2**20,
        10**9,
        2 * 10**9,
        64 * 2**10,
    ]
    for wrong in ("1e400", "1e30", "", "GiB", "4 parsecs", "0", "-1", "1..2"):
        with pytest.raises(UsageError, match="give a number and a unit"):
            parse_size(wrong)


def test_building_and_inspecting_load_no_torch(built: Path) -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\n"
        "from catp.export.commands.build import app as build\n"
        "from catp.runtime.commands.inspect import app as inspect\n"
        f"built = CliRunner().invoke(build, [{str(built)!r}, *{ARGUMENTS!r}])\n"
        f"seen = CliRunner().invoke(inspect, [{str(built)!r}])\n"
        "print(built.exit_code, seen.exit_code, 'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["0", "0", "False"]


def test_inspect_shows_graphs_and_engines(built: Path, demo_bundle: Path) -> None:
    shown = RUNNER.invoke(inspect_app, [str(built)])
    assert shown.exit_code == 0, shown.output
    for part in (
        "catp keeps 16 of 32",
        "vision_encoder: fp32",
        "in  num_kept int64 [1]",
        ": current",
        "max_length 128",
    ):
        assert part in shown.stdout
    described = json.loads(RUNNER.invoke(inspect_app, [str(built), "--json"]).stdout)
    assert described["engines"][0]["state"] == "current"
    assert set(described["engines"][0]["plans"]) == set(GRAPHS)
    assert "No engines" in RUNNER.invoke(inspect_app, [str(demo_bundle)]).stdout
