"""Opening a bundle: the folder is what its manifest says, or it is refused by name."""

from __future__ import annotations

import json
import os
import secrets
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from catp.runtime.bundle.graph_shape import check_graph
from catp.runtime.bundle.manifest import MANIFEST_NAME, SCHEMA_VERSION, FileSpec, Manifest
from catp.runtime.bundle.receipts import hash_of
from catp.runtime.errors import BundleError, UsageError
from catp.runtime.files import is_dir, sha256
from catp.runtime.limits import MANIFEST_BYTES


@dataclass(frozen=True)
class Bundle:
    """A folder written by catp-export and its validated manifest."""

    path: Path
    manifest: Manifest

    def file(self, spec: FileSpec) -> Path:
        return self.path / spec.path

    def graph_file(self, name: str) -> Path:
        return self.file(self.manifest.graphs[name].file)


def open_bundle(path: str | os.PathLike[str], verify: bool = True, rehash: bool = False) -> Bundle:
    """Read and check a bundle.

    Args:
        path: the bundle's folder.
        verify: also compare every file's sha256 with the manifest (sizes are always compared). A large file that
            nobody touched since it was hashed last is not read again, see `receipts`.
        rehash: read it all the same.

    Raises:
        UsageError: `path` is no bundle, or its name can't be handed to the libraries that read it.
        BundleError: the bundle is incomplete, altered, or from a newer version; the message names the file.
    """
    folder = Path(path)
    if not is_dir(folder):
        raise UsageError(f"bundle {folder}: no such folder; write one with catp-export -o {folder}")
    check_name("bundle", folder)
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
        list(threads.map(lambda spec: _check_file(bundle, spec, verify, rehash), bundle.manifest.all_files()))
    for graph in bundle.manifest.graphs:
        check_graph(bundle, graph)
    return bundle


def check_name(what: str, path: Path) -> None:
    """Raises UsageError where a path's name is no text: ONNX Runtime and the tokenizer take no other."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UsageError(f"{what} {path}: its name is not valid UTF-8; rename it") from None


def _read_manifest(path: Path) -> Manifest:
    try:
        with path.open("rb") as file:
            text = file.read(MANIFEST_BYTES + 1)
        if len(text) > MANIFEST_BYTES:
            raise BundleError(f"{path}: it has more than {MANIFEST_BYTES:,} bytes; export the bundle again")
        content = json.loads(text)
        if b"\\ud" in text.lower():  # half a character, which JSON can spell and nothing can encode
            json.dumps(content, ensure_ascii=False).encode()
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


def _check_file(bundle: Bundle, spec: FileSpec, verify: bool, rehash: bool) -> None:
    path = bundle.file(spec)
    try:
        if not path.is_file():
            raise BundleError(f"bundle {bundle.path}: {spec.path} is missing; export the bundle again")
        if not _belongs(path, bundle.path):
            raise BundleError(
                f"bundle {bundle.path}: {spec.path} points outside the bundle; give a bundle that has its files in it"
            )
        size = path.stat().st_size
        if size != spec.size:
            raise BundleError(
                f"bundle {bundle.path}: {spec.path} has {size:,} bytes, the manifest says {spec.size:,}; "
                "export the bundle again"
            )
        if verify and hash_of(path, rehash) != spec.sha256:
            raise BundleError(
                f"bundle {bundle.path}: {spec.path} was altered (its sha256 is not the manifest's); "
                "export the bundle again"
            )
    except OSError as error:
        raise BundleError(f"bundle {bundle.path}: {spec.path[:200]} can't be read ({error.strerror})") from None


def _belongs(path: Path, folder: Path) -> bool:
    """Whether a file is the bundle's own: inside it, or where the Hub's cache keeps what the links in it name.

    https://huggingface.co/docs/huggingface_hub/guides/manage-cache: `models--OWNER--NAME/snapshots/COMMIT/FILE` is a
    link to `models--OWNER--NAME/blobs/HASH`.
    """
    target, folder = path.resolve(), folder.resolve()
    if target.is_relative_to(folder):
        return True
    for snapshot in (folder, *folder.parents):
        cache = snapshot.parent.parent
        if snapshot.parent.name == "snapshots" and cache.name.startswith(("models--", "datasets--", "spaces--")):
            return target.parent == cache / "blobs"
    return False


def write_manifest(folder: Path, manifest: Manifest, replaces: Manifest | None = None) -> None:
    """Write catp.json in one step: it is the old one or the new one, whatever happens meanwhile.

    Args:
        replaces: the old one, which must still be there; None: whatever is there.

    Raises:
        BundleError: it can't be written, or the bundle is another one by now.
    """
    temporary = folder / f".{MANIFEST_NAME}.{secrets.token_hex(8)}"
    try:
        temporary.write_text(manifest.model_dump_json(indent=2) + "\n")
        if replaces is not None and _read_manifest(folder / MANIFEST_NAME) != replaces:
            raise BundleError(f"bundle {folder}: somebody else has changed it meanwhile; nothing was written")
        temporary.replace(folder / MANIFEST_NAME)
    except OSError as error:
        raise BundleError(f"bundle {folder}: its manifest can't be written ({error.strerror})") from None
    finally:
        temporary.unlink(missing_ok=True)


def file_spec(folder: Path, path: Path) -> FileSpec:
    """The manifest's entry for a file that lies in `folder`."""
    return FileSpec(path=path.relative_to(folder).as_posix(), size=path.stat().st_size, sha256=sha256(path))
