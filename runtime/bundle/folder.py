"""Opening a bundle: the folder is what its manifest says, or it is refused by name."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from catp.runtime.bundle.manifest import MANIFEST_NAME, SCHEMA_VERSION, FileSpec, Manifest
from catp.runtime.errors import BundleError, UsageError
from catp.runtime.files import is_dir, sha256


@dataclass(frozen=True)
class Bundle:
    """A folder written by catp-export and its validated manifest."""

    path: Path
    manifest: Manifest

    def file(self, spec: FileSpec) -> Path:
        return self.path / spec.path

    def graph_file(self, name: str) -> Path:
        return self.file(self.manifest.graphs[name].file)


def open_bundle(path: str | os.PathLike[str], verify: bool = True) -> Bundle:
    """Read and check a bundle.

    Args:
        path: the bundle's folder.
        verify: also compare every file's sha256 with the manifest (sizes are always compared).

    Raises:
        UsageError: `path` is no bundle.
        BundleError: the bundle is incomplete, altered, or from a newer version; the message names the file.
    """
    folder = Path(path)
    if not is_dir(folder):
        raise UsageError(f"bundle {folder}: no such folder; write one with catp-export -o {folder}")
    manifest_path = folder / MANIFEST_NAME
    if not manifest_path.is_file():
        raise UsageError(f"bundle {folder}: it has no {MANIFEST_NAME}; give a folder written by catp-export")
    bundle = Bundle(folder, _read_manifest(manifest_path))
    listed = {spec.path for spec in bundle.manifest.all_files()}
    for path in sorted([*folder.glob("*.onnx"), *folder.glob("*.onnx_data")]):
        if path.name not in listed:  # a graph could read weights that no hash vouches for
            raise BundleError(f"bundle {folder}: {path.name} is not in its manifest; export the bundle again")
    # Gigabytes are hashed faster side by side: hashing lets other threads run.
    with ThreadPoolExecutor() as threads:
        list(threads.map(lambda spec: _check_file(bundle, spec, verify), bundle.manifest.all_files()))
    return bundle


def _read_manifest(path: Path) -> Manifest:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path}: not readable as JSON ({error}); export the bundle again") from None
    version = content.get("schema_version") if isinstance(content, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise BundleError(
            f"{path}: schema version {version} is newer than this program's {SCHEMA_VERSION}; upgrade catp-exporter"
        )
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise BundleError(f"{path}: {where}: {first['msg']}; export the bundle again") from None


def _check_file(bundle: Bundle, spec: FileSpec, verify: bool) -> None:
    path = bundle.file(spec)
    if not path.is_file():
        raise BundleError(f"bundle {bundle.path}: {spec.path} is missing; export the bundle again")
    if not path.resolve().is_relative_to(bundle.path.resolve()):
        raise BundleError(f"bundle {bundle.path}: {spec.path} points outside the bundle; export the bundle again")
    size = path.stat().st_size
    if size != spec.size:
        raise BundleError(
            f"bundle {bundle.path}: {spec.path} has {size:,} bytes, the manifest says {spec.size:,}; "
            "export the bundle again"
        )
    if verify and sha256(path) != spec.sha256:
        raise BundleError(
            f"bundle {bundle.path}: {spec.path} was altered (its sha256 is not the manifest's); export the bundle again"
        )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write catp.json in one step: it is the old one or the new one, whatever happens meanwhile.

    Raises:
        BundleError: it can't be written.
    """
    temporary = folder / f".{MANIFEST_NAME}.{os.getpid()}"
    try:
        temporary.write_text(manifest.model_dump_json(indent=2) + "\n")
        temporary.replace(folder / MANIFEST_NAME)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise BundleError(f"bundle {folder}: its manifest can't be written ({error.strerror})") from None


def file_spec(folder: Path, path: Path) -> FileSpec:
    """The manifest's entry for a file that lies in `folder`."""
    return FileSpec(path=path.relative_to(folder).as_posix(), size=path.stat().st_size, sha256=sha256(path))
