"""The folder says what a line may know."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("export", "runtime", "calibration")

FLOORS = {
    "runtime": (
        ("errors",),
        ("limits", "system"),
        ("files",),
        ("bundle",),
        ("providers", "inputs", "pruning"),
        ("language_models", "image_sides"),
        ("generation", "matching", "answers", "questions"),
        ("pipeline",),
        ("server", "retrieval"),
        ("commands", "cluster"),
    ),
    "export": (
        ("nlvr",),
        ("voting", "demo", "encoder_pruning"),
        ("graphs",),
        ("language_models",),
        ("image_encoders",),
        ("families",),
        ("checkpoints", "engines"),
        ("writing", "verification", "conversion", "packing", "triton"),
        ("exporter",),
        ("commands",),
    ),
    "calibration": (
        ("data", "plots", "significance", "supported"),
        ("accuracy", "benchmark", "explanation", "harness"),
        ("ratio", "encoder", "retrieval", "placement"),
        ("precision", "fastest"),
        ("commands",),
    ),
}
"""Rooms of each package from the ground up: a room imports from floors below its own, never from its own or above."""

KEPT_IN = {
    "rich": (
        "runtime/commands",
        "export/commands",
        "calibration/commands",
        "calibration/*/tables.py",
        "calibration/ratio",
        "calibration/benchmark/results",
        "calibration/benchmark/load/tables.py",
    ),
    "packaging": ("export/packing",),
    "httpx": ("calibration/benchmark/load",),
    "starlette": ("runtime/server", "runtime/cluster"),
    "uvicorn": ("runtime/server/serving.py",),
    "ray": ("runtime/cluster", "calibration/accuracy/workers.py"),
    "lmms_eval": ("calibration/harness",),
    "matplotlib": (
        "calibration/plots.py",
        "calibration/explanation",
        "calibration/benchmark/results",
        "calibration/benchmark/load/plot.py",
        "calibration/accuracy",
        "calibration/fastest/plot.py",
    ),
    "openvino": ("runtime/providers/openvino", "calibration/benchmark/contenders/openvino"),
    "onnxruntime": (
        "runtime/providers",
        "export/exporter.py",
        "calibration/precision",
        "calibration/benchmark/rates.py",
    ),
    "tokenizers": (
        "runtime/inputs",
        "export/demo/untrained.py",
        "export/demo/vqa/untrained.py",
        "export/demo/nlvr/untrained.py",
        "calibration/benchmark/synthetic/configurations.py",
    ),
    "easy_vqa": ("export/demo/vqa/easy.py",),
}
"""Libraries that only these places import."""

LOOSE = 8
"""Modules beside the folders of a package, at most: more of them are a room that nobody named."""
FORBIDDEN = {
    "runtime": ("torch", "transformers", "onnx", "safetensors", "catp.export", "catp.calibration"),
    "export": ("catp.calibration",),
}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_a_folder_imports_nothing_it_must_not_know(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files
        for name in imported(path)
        if any(name == f or name.startswith(f + ".") for f in FORBIDDEN[folder])
    ]
    assert not wrong


def test_importing_the_runtime_loads_no_torch() -> None:
    code = (
        "import sys, catp.runtime, catp.runtime.commands.run, catp.runtime.server.serving; "
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.split() == ["False", "False"]


def test_a_clone_resolves_its_packages_without_an_installation() -> None:
    for package in PACKAGES:
        link = ROOT / "catp" / package
        assert link.is_symlink() and not link.readlink().is_absolute() and link.resolve() == ROOT / package
    code = (
        "import sys; sys.meta_path = [finder for finder in sys.meta_path if 'editable' not in str(finder)]; "
        "import catp.runtime; print(catp.runtime.__file__)"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert Path(output.strip()) == ROOT / "catp" / "runtime" / "__init__.py"


def test_every_package_is_in_the_wheel() -> None:
    import tomllib

    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {
        "catp." + ".".join(init.parent.relative_to(ROOT).parts)
        for folder in PACKAGES
        for init in (ROOT / folder).rglob("__init__.py")
    }
    assert listed == found


def rooms_imported(path: Path, package: str) -> set[str]:
    """Rooms of a package, its folders and loose modules, that a file of it imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        modules = names if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            modules = [f"{node.module}.{name}" for name in names]
        for module in modules:
            parts = module.split(".")
            if parts[:2] == ["catp", package] and len(parts) > 2:
                found.add(parts[2])
    return found


@pytest.mark.parametrize("package", FLOORS)
def test_no_import_runs_upwards(package: str) -> None:
    floor_of = {room: floor for floor, rooms in enumerate(FLOORS[package]) for room in rooms}
    wrong = []
    for path in sorted((ROOT / package).rglob("*.py")):
        room = path.relative_to(ROOT / package).parts[0].removesuffix(".py")
        if room == "__init__":
            continue  # the package's face shows what lies on every floor
        assert room in floor_of, f"{package}/{room}: give it a floor in FLOORS"
        for other in rooms_imported(path, package) - {room}:
            if other in floor_of and floor_of[other] >= floor_of[room]:
                wrong.append(f"{path.relative_to(ROOT)} imports {other}")
    assert not wrong


def test_every_room_with_a_floor_exists() -> None:
    for package, floors in FLOORS.items():
        for room in (room for rooms in floors for room in rooms):
            assert (ROOT / package / room).is_dir() or (ROOT / package / f"{room}.py").is_file(), f"{package}/{room}"


@pytest.mark.parametrize("library", KEPT_IN)
def test_a_library_stays_in_its_rooms(library: str) -> None:
    wrong = [
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        if any(name == library or name.startswith(f"{library}.") for name in imported(path))
        and not any(
            path.relative_to(ROOT).is_relative_to(place) or path.relative_to(ROOT).match(place)
            for place in KEPT_IN[library]
        )
    ]
    assert not wrong


def test_every_folder_has_a_line_in_the_architecture_page() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    listed = re.findall(r"^\| `([a-z_/]+)/` \|", text, re.MULTILINE)
    found = {
        str(init.parent.relative_to(ROOT)) for package in PACKAGES for init in (ROOT / package).rglob("__init__.py")
    }
    assert sorted(listed) == sorted(found)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_folder_has_too_many_loose_modules(package: str) -> None:
    for folder in [ROOT / package, *(path for path in (ROOT / package).rglob("*") if path.is_dir())]:
        inner = [path for path in folder.iterdir() if path.is_dir() and (path / "__init__.py").is_file()]
        loose = [path.name for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert not inner or len(loose) <= LOOSE, f"{folder.relative_to(ROOT)}: {', '.join(sorted(loose))}"


@pytest.mark.parametrize("package", PACKAGES)
def test_docstrings_put_the_noun_first(package: str) -> None:
    wrong = []
    for path in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node) or ""
                if text.split()[:1] in (["What"], ["Of"]):
                    wrong.append(f"{path.relative_to(ROOT)}: {text.splitlines()[0]}")
    assert not wrong
