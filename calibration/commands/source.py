"""The source of a command: a bundle, or a checkpoint or official file that is exported for the occasion."""

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
OFFICIAL = (".pth", ".pt")
"""Ends of the names of files that BLIP's and MADTP's official code saves."""


@contextmanager
def checkpoint_of(source: str, tokenizer: str | None) -> Iterator[str]:
    """The source itself, or a temporary folder with the checkpoint that catp-convert makes of an official file.

    Args:
        tokenizer: of such a file, as catp-convert takes it.

    Raises:
        UsageError: the file has no tokenizer, anything else has one, or the file can't be taken.
        CatpError: the file is broken.
    """
    path = Path(source)
    official = path.suffix in OFFICIAL and not is_dir(path)
    if not official:
        if tokenizer is not None:
            raise UsageError(
                f"--tokenizer {tokenizer}: {source} is no {' or '.join(OFFICIAL)} file, and has its own; leave it out"
            )
        yield source
        return
    if tokenizer is None:
        raise UsageError(
            f"{source}: the vocabulary is not in a {path.suffix} file; name a folder or Hub id that has it with "
            "--tokenizer, as catp-convert takes it"
        )
    try:
        from catp.export.conversion.madtp import convert_madtp
    except ImportError as error:
        raise UsageError(
            f"{source}: to convert such a file {error.name} is needed, which {reason_of(error, error.name)}; pip "
            "install '.[export,cpu]'"
        ) from None
    console.print(
        f"Converting {escape(source)} for this run only. To keep it: catp-convert madtp {escape(source)} --tokenizer "
        f"{escape(tokenizer)} -o {escape(path.stem)}",
        soft_wrap=True,
    )
    with tempfile.TemporaryDirectory(prefix="catp-convert-") as folder:
        checkpoint = Path(folder) / path.stem
        convert_madtp(path, checkpoint, tokenizer, progress=busy)
        yield str(checkpoint)


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
def bundle_folder(
    source: str,
    adapter: str | None = None,
    encoder_flops: float | None = None,
    counts: bool = False,
    shown: str | None = None,
) -> Iterator[Path]:
    """The folder of a bundle: `source` itself, or a temporary export of the checkpoint that it names, with diagnostics.

    Args:
        adapter: a LoRA adapter that is merged into the checkpoint.
        encoder_flops: of a checkpoint, the share of the vision encoder's work that its export is left; None: all of it.
        counts: of a checkpoint, whether its vision encoder counts its tokens itself (the dynamic form).
        shown: its name on the screen, where the folder is a temporary one.

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
        from catp.export.image_encoders.plan import EncoderOptions
    except ImportError as error:
        raise UsageError(
            f"{source}: not a bundle, and to export a checkpoint {error.name} is needed, which "
            f"{reason_of(error, error.name)}; "
            "give a bundle that catp-export wrote, or pip install '.[export,cpu]'"
        ) from None
    options = "".join(
        [
            f" --adapter {escape(adapter)}" if adapter else "",
            "" if encoder_flops is None else f" --encoder-flops {encoder_flops:g}",
            " --encoder-form dynamic" if counts else "",
        ]
    )
    name = escape(shown or source)
    console.print(
        f"Exporting the checkpoint {name} for this run only. To keep it: "
        f"catp-export --model {name}{options} --diagnostics",
        soft_wrap=True,
    )
    encoder = EncoderOptions(flops=encoder_flops, form="dynamic" if counts else "schedule")
    with tempfile.TemporaryDirectory(prefix="catp-eval-") as folder:
        bundle = Path(folder) / "bundle"
        export_bundle(source, bundle, adapter=adapter, diagnostics=True, encoder=encoder, step=busy)
        yield bundle
