"""The making of a pack: bundle, wheels, a lock of their hashes and a script that installs them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from packaging.utils import parse_wheel_filename

from catp.export.packing.own_wheel import write_own_wheel
from catp.export.packing.platforms import Platform
from catp.export.packing.wheels import download_wheels, requirements_of
from catp.runtime.bundle.folder import Bundle, open_bundle
from catp.runtime.bundle.manifest import MANIFEST_NAME
from catp.runtime.bundle.publish import check_free, link_or_copy, published
from catp.runtime.errors import UsageError
from catp.runtime.files import sha256
from catp.runtime.system.progress import Progress, silent

PACK_NAME: Final = "pack.json"
LOCK_NAME: Final = "requirements.lock"
ENGINES: Final = "engines"

INSTALL: Final = """\
#!/bin/sh
# Installs the runtime from this folder alone: no package index is asked, and every wheel has the hash of the lock.
#
#   ./install.sh [ENVIRONMENT]    PYTHON names the interpreter
set -eu
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
environment=${1:-$here/environment}
python=${PYTHON:-python@PYTHON@}
if ! found=$("$python" -c 'import platform, sys; print("%d.%d %s" % (*sys.version_info[:2], platform.machine()))'); then
    echo "error: $python does not run; this pack needs Python @PYTHON@, set PYTHON to it" >&2
    exit 2
fi
if [ "$found" != "@PYTHON@ @MACHINE@" ]; then
    echo "error: $python is $found, and this pack is for @PYTHON@ @MACHINE@; set PYTHON, or make another pack" >&2
    exit 2
fi
"$python" -m venv "$environment"
"$environment/bin/python" -m pip --isolated --disable-pip-version-check install --quiet \\
    --no-index --find-links "$here/wheels" --require-hashes --only-binary :all: -r "$here/@LOCK@"
"$environment/bin/catp-inspect" "$here/bundle" >/dev/null
echo "Installed. Next: $environment/bin/catp-run $here/bundle --image FILE --prompt TEXT"
"""


def make_pack(
    bundle: Path,
    output: Path,
    platform: Platform,
    extras: Sequence[str] = ("cpu",),
    constraint: Path | None = None,
    overwrite: bool = False,
    step: Progress = silent,
) -> Path:
    """Make a pack, published in one step.

    Args:
        extras: of this project, `cpu` and `serve`.
        constraint: versions of the wheels, as pip reads them; None: the newest.

    Returns:
        The folder: bundle/, wheels/, the lock, pack.json, install.sh.

    Raises:
        UsageError: an argument can't be used.
        BundleError: the bundle is not sound.
        CatpError: a wheel can't be had, or the pack not be written; nothing was published.
    """
    if constraint is not None and not constraint.is_file():
        raise UsageError(f"--constraint {constraint}: no such file; give one of lines such as numpy==2.3.0")
    check_free(output.resolve(), overwrite, PACK_NAME)
    with step("check the bundle"):
        opened = open_bundle(bundle)
    if output.resolve().is_relative_to(opened.path.resolve()):
        raise UsageError(f"output {output}: it is inside the bundle; give a folder elsewhere")
    with published(output, overwrite, PACK_NAME) as folder:
        wheels = folder / "wheels"
        wheels.mkdir()
        with step(f"fetch wheels for {platform.name}, Python {platform.python}"):
            download_wheels(requirements_of(extras, platform), platform, wheels, constraint)
        write_own_wheel(wheels)
        _copy_bundle(opened, folder / "bundle")
        _write_lock(wheels, folder / LOCK_NAME)
        script = folder / "install.sh"
        text = INSTALL.replace("@PYTHON@", platform.python).replace("@MACHINE@", platform.machine)
        script.write_text(text.replace("@LOCK@", LOCK_NAME))
        script.chmod(0o755)
        content = {
            "platform": platform.name,
            "python": platform.python,
            "extras": list(extras),
            "model": opened.manifest.model.id,
            "bundle_sha256": sha256(folder / "bundle" / MANIFEST_NAME),
            "wheels": {path.name: path.stat().st_size for path in sorted(wheels.iterdir())},
        }
        (folder / PACK_NAME).write_text(json.dumps(content, indent=2) + "\n")
    return output


def _copy_bundle(bundle: Bundle, target: Path) -> None:
    """The files of the manifest and the engines; a pack of a bundle shares its files where the file system can."""
    for spec in bundle.manifest.all_files():
        (target / spec.path).parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(bundle.file(spec).resolve(), target / spec.path)
    shutil.copy2(bundle.path / MANIFEST_NAME, target / MANIFEST_NAME)
    if (bundle.path / ENGINES).is_dir():
        shutil.copytree(bundle.path / ENGINES, target / ENGINES)


def _write_lock(wheels: Path, lock: Path) -> None:
    """One line for each wheel, which pip's --require-hashes reads."""
    lines = ["# Every wheel, with its hash; install.sh installs these and no others."]
    for path in sorted(wheels.iterdir()):
        name, version, *_ = parse_wheel_filename(path.name)
        lines.append(f"{name}=={version} --hash=sha256:{sha256(path)}")
    lock.write_text("\n".join(lines) + "\n")
