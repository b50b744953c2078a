"""The source of a command: a bundle, or a checkpoint that is exported for the occasion."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.markup import escape

from catp.runtime.bundle.manifest import MANIFEST_NAME
from catp.runtime.commands.console import busy, console
from catp.runtime.errors import UsageError
from catp.runtime.files import is_dir
from catp.runtime.system.optional_imports import reason_of

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def is_bundle(source: str) -> bool:
    """Whether it is a folder that catp-export wrote, and not a checkpoint."""
    return is_dir(Path(source)) and (Path(source) / MANIFEST_NAME).is_file()


@contextmanager
def bundle_folder(source: str) -> Iterator[Path]:
    """The folder of a bundle: `source` itself, or a temporary export of the checkpoint that it names, with diagnostics.

    Raises:
        UsageError: it is neither a bundle nor a checkpoint, or what exports checkpoints is not installed.
        CatpError: the export failed.
    """
    if is_bundle(source):
        yield Path(source)
        return
    path = Path(source)
    if is_dir(path) and not (path / "config.json").is_file():
        raise UsageError(
            f"{source}: the folder has neither {MANIFEST_NAME} nor config.json; give a bundle that catp-export wrote, "
            "or a checkpoint"
        )
    # What is below a folder that exists was meant to be a path: the Hub need not be asked.
    if not is_dir(path) and (not HUB_ID.fullmatch(source) or is_dir(path.parent)):
        raise UsageError(
            f"{source}: no such folder; give a bundle that catp-export wrote, or a checkpoint: a folder or a Hub id"
        )
    try:
        from catp.export.exporter import export_bundle
    except ImportError as error:
        raise UsageError(
            f"{source}: not a bundle, and to export a checkpoint {error.name} is needed, which "
            f"{reason_of(error, error.name)}; "
            "give a bundle that catp-export wrote, or pip install '.[export,cpu]'"
        ) from None
    console.print(
        f"Exporting the checkpoint {escape(source)} for this run only. To keep it: "
        f"catp-export --model {escape(source)} --diagnostics",
        soft_wrap=True,
    )
    with tempfile.TemporaryDirectory(prefix="catp-eval-") as folder:
        bundle = Path(folder) / "bundle"
        export_bundle(source, bundle, diagnostics=True, step=busy)
        yield bundle
