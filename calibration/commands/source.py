"""The source of a command: a bundle, or a checkpoint that is exported for the occasion."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.markup import escape

from catp.calibration.supported import writes_captions
from catp.runtime.bundle.folder import open_bundle
from catp.runtime.bundle.manifest import MANIFEST_NAME
from catp.runtime.commands.console import busy, console
from catp.runtime.errors import CatpError, UsageError
from catp.runtime.files import is_dir
from catp.runtime.system.optional_imports import reason_of

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def is_bundle(source: str) -> bool:
    """Whether it is a folder that catp-export wrote, and not a checkpoint."""
    return is_dir(Path(source)) and (Path(source) / MANIFEST_NAME).is_file()


def describes_pictures(source: str) -> bool:
    """Whether a bundle or checkpoint writes captions; what can't be read is not known to."""
    if is_bundle(source):
        return writes_captions(open_bundle(Path(source)).manifest)
    try:
        from transformers import AutoConfig

        from catp.export.families import family_of

        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        return family_of(config, source).language.kind == "captioning"
    except (ImportError, OSError, ValueError, CatpError):
        return False  # the export says what is wrong with it


def check_adapter(source: str, adapter: str | None) -> None:
    """Raises UsageError where an adapter is given for a bundle, which has its own inside."""
    if adapter is not None and is_bundle(source):
        raise UsageError(
            f"--adapter {adapter}: {source} is a bundle, whose adapter was merged when it was exported; give the "
            "checkpoint, or leave --adapter out"
        )


@contextmanager
def bundle_folder(source: str, adapter: str | None = None) -> Iterator[Path]:
    """The folder of a bundle: `source` itself, or a temporary export of the checkpoint that it names, with diagnostics.

    Args:
        adapter: a LoRA adapter that is merged into the checkpoint.

    Raises:
        UsageError: it is neither a bundle nor a checkpoint, what exports checkpoints is not installed, or an adapter is
            given for a bundle.
        CatpError: the export failed.
    """
    check_adapter(source, adapter)
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
        f"catp-export --model {escape(source)}{f' --adapter {escape(adapter)}' if adapter else ''} --diagnostics",
        soft_wrap=True,
    )
    with tempfile.TemporaryDirectory(prefix="catp-eval-") as folder:
        bundle = Path(folder) / "bundle"
        export_bundle(source, bundle, adapter=adapter, diagnostics=True, step=busy)
        yield bundle
