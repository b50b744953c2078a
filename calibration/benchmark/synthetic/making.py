"""Bundles of true sizes with random weights: what a geometry costs needs nobody's weights.

torch is used in a process of its own, which takes its memory along when it ends: what is timed comes after it.
"""

from __future__ import annotations

import multiprocessing
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catp.calibration.benchmark.contenders.registry import check_installed
from catp.calibration.benchmark.synthetic.checkpoint import save_checkpoint
from catp.calibration.benchmark.synthetic.sizes import Preset
from catp.runtime.errors import CatpError, UsageError
from catp.runtime.files import is_dir
from catp.runtime.system.machine import available_memory
from catp.runtime.system.progress import Progress, silent

BUNDLE, PRUNED = "bundle", "pruned"
"""Folders beside the checkpoint."""

MEMORY_COPIES, DISK_COPIES = 0.1, 1
"""How often the float32 weights are in memory at most, while they are timed, and on disk: beside those of bundles."""


@dataclass(frozen=True)
class Made:
    """Folders of a checkpoint and of bundles exported from it."""

    checkpoint: Path
    bundle: Path
    pruned: Path | None  # with a vision encoder that prunes


@dataclass(frozen=True)
class Inside:
    """Pruning inside the vision encoder, for a second bundle."""

    rule: str | None  # None: the exporter's choice
    shares: tuple[float, ...]  # of the dense encoder's work; the first one's schedule is the bundle's own


@contextmanager
def made(name: Preset, keep: Path | None, step: Progress = silent, inside: Inside | None = None) -> Iterator[Made]:
    """A synthetic checkpoint and its bundles, in `keep`, or in a temporary folder that is gone afterwards.

    Raises:
        UsageError: `keep` is taken, or what exports checkpoints is not installed.
        CatpError: memory or disk don't suffice, or the export failed.
    """
    check_installed(f"--synthetic {name}", "export,cpu", "torch", "transformers", "onnx", "onnxscript", "onnxruntime")
    if keep is not None:
        yield _make_in(keep, name, step, inside)
        return
    with tempfile.TemporaryDirectory(prefix="catp-synthetic-") as folder:
        yield _make_in(Path(folder), name, step, inside)


def _make_in(folder: Path, name: Preset, step: Progress, inside: Inside | None) -> Made:
    found = _folders(folder, name, inside is not None)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = any(folder.iterdir())
    except OSError as error:
        raise UsageError(f"--keep {folder}: no folder can be made there ({error.strerror}); give another one") from None
    if taken:
        held = f"{folder / PRUNED} --dense {found.bundle}" if is_dir(folder / PRUNED) else f"{found.bundle}"
        again = f", or time what it holds: catp-bench run {held} --checkpoint {found.checkpoint}"
        raise UsageError(
            f"--keep {folder}: the folder is not empty; give another one{again if is_dir(found.bundle) else ''}"
        )
    context = multiprocessing.get_context("spawn")
    with step(f"make and export {name} with random weights"), ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            pool.submit(_make, name, found, inside).result()
        except BrokenProcessPool:
            raise CatpError(
                f"--synthetic {name}: the process that exported it was killed, as systems do when memory runs out; "
                "free some, or give a smaller one"
            ) from None
    return found


def _folders(folder: Path, name: Preset, pruned: bool) -> Made:
    return Made(folder / f"synthetic-{name}", folder / BUNDLE, folder / PRUNED if pruned else None)


def _make(name: Preset, made: Made, inside: Inside | None) -> None:
    import torch

    from catp.export.exporter import export_bundle
    from catp.export.image_encoders.plan import EncoderOptions, plan_pruning

    def check_config(config: Any) -> None:
        if inside is not None:
            for share in inside.shares:  # one that can't be reached is refused before anything is made
                options = EncoderOptions(rule=inside.rule, flops=share)
                plan_pruning(options, config, has_dictionary=False, temperature=None)

    def check_parameters(parameters: int, apart: int) -> None:
        check_room(name, parameters, made.checkpoint.parent, again=apart if inside else 0)

    torch.manual_seed(0)
    save_checkpoint(name, made.checkpoint, check_config, check_parameters)
    export_bundle(str(made.checkpoint), made.bundle)
    if inside is not None and made.pruned is not None:
        options = EncoderOptions(rule=inside.rule, flops=inside.shares[0])
        export_bundle(str(made.checkpoint), made.pruned, encoder=options)


def check_room(name: str, parameters: int, folder: Path, again: int = 0) -> None:
    """Raises CatpError where making, exporting and timing a model of so many parameters would fail for want of room.

    Args:
        again: of the parameters, those that a second bundle doesn't share with the first in memory; on disk it shares
            nothing. 0: there is one bundle.
    """
    weights, bundles = 4 * parameters, 2 if again else 1
    for what, needed, free in (
        ("memory", (MEMORY_COPIES + 1) * weights + 4 * again, available_memory()),
        (f"disk in {folder}", (DISK_COPIES + bundles) * weights, shutil.disk_usage(folder).free),
    ):
        if free is not None and free < needed:
            raise CatpError(
                f"--synthetic {name}: {parameters / 1e6:,.0f} million parameters need about {needed / 1e9:,.1f} GB of "
                f"{what}, and {free / 1e9:,.1f} GB are free; free some, or give a smaller one"
            )
