"""Contenders by name: other runtimes, other bundles. What one needs is imported when it is asked for."""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from catp.calibration.benchmark.contenders.runtimes import RUNTIMES
from catp.calibration.benchmark.contenders.subject import OURS, Subject
from catp.calibration.benchmark.costs.geometry import read_geometry
from catp.calibration.benchmark.options import RATIOS, parse_ratios
from catp.runtime.bundle.chains import LanguageKind
from catp.runtime.bundle.folder import Bundle, open_bundle
from catp.runtime.bundle.manifest import Manifest
from catp.runtime.errors import UsageError
from catp.runtime.files import is_dir

DENSE = "dense"
"""The bundle that `--dense` names, in a report."""


def find_contenders(given: str | None, dense: Path | None = None) -> dict[str, Path | None]:
    """Contenders that `--against` names, by their name in a report: a bundle's folder, or None for a runtime.

    A bundle is called as its folder is, with a number behind it where that name is taken.

    Args:
        dense: folder of the bundle that `--dense` names; it comes first, and is DENSE.

    Raises:
        UsageError: one is unknown, or what it needs is not installed.
    """
    found: dict[str, Path | None] = {} if dense is None else {DENSE: dense}
    folders = set() if dense is None else {dense.resolve()}
    for text in [part.strip() for part in given.split(",")] if given else ():
        path = Path(text)
        if text in RUNTIMES:
            check_installed(f"--against {text}", RUNTIMES[text].extra, *RUNTIMES[text].libraries)
            found[text] = None
        elif not text or not is_dir(path):
            raise UsageError(
                f"--against {text!r}: unknown; accepted: {', '.join(RUNTIMES)}, and folders of other bundles"
            )
        elif path.resolve() not in folders:
            folders.add(path.resolve())
            name = path.name if path.name not in ("", "..") else path.resolve().name
            found[free_name(name, {OURS, *RUNTIMES, *found})] = path
    return found


def free_name(name: str, taken: set[str]) -> str:
    """The name, with a number behind it where it is taken."""
    candidate, number = name, 2
    while candidate in taken:
        candidate, number = f"{name}-{number}", number + 1
    return candidate


def check_installed(option: str, extra: str, *libraries: str) -> None:
    """Raises UsageError where one is not; none is imported: it takes memory that would be taken for ours.

    Args:
        extra: what installs them.
    """
    for library in libraries:
        if not _is_installed(library):
            raise UsageError(f"{option}: it needs {library}, which is not installed; pip install '.[{extra}]'")


def _is_installed(library: str) -> bool:
    try:
        return importlib.util.find_spec(library) is not None
    except ValueError:  # it was blocked
        return False


def open_bundles(
    folder: Path, contenders: Mapping[str, Path | None], ratios: tuple[float, ...] | None
) -> tuple[dict[str, Bundle], dict[str, float], tuple[float, ...]]:
    """The bundle in `folder`, which is ours, and those among the contenders; the seconds that each took to verify; and
    the ratios that they are timed at.

    Args:
        ratios: as asked for; None: the usual ones, or 0 alone where nothing can be pruned.

    Raises:
        UsageError: one is no bundle, is one of another model, can't prune by these ratios, or is a runtime that does
            not run such models.
        BundleError: one is incomplete or altered.
    """
    bundles: dict[str, Bundle] = {}
    seconds: dict[str, float] = {}
    for name, path in {OURS: folder, **contenders}.items():
        if path is None:
            _check_runs(name, bundles[OURS].manifest)
            continue
        started = time.perf_counter()
        bundles[name] = open_bundle(path)
        seconds[name] = time.perf_counter() - started
        vote = bundles[name].manifest.vote
        if ratios is None:
            ratios = (0.0,) if vote is None else parse_ratios(RATIOS)
        if vote is None and any(ratios):
            family = bundles[name].manifest.model.family
            raise UsageError(
                f"ratios: bundle {path} is {family}, which has no query tokens to leave out; leave --ratios out"
            )
        if vote is not None and vote.method == "none" and any(ratios):
            raise UsageError(
                f"ratios: bundle {path} was exported with --method none and keeps every token; give --ratios 0"
            )
        if name != OURS:
            _check_same(bundles[OURS], bundles[name])
    assert ratios is not None  # ours comes first
    return bundles, seconds, ratios


def check_dense(ours: Bundle, dense: Bundle) -> None:
    """Raises UsageError where `--dense` names no dense encoder, or ours is one itself."""
    pruning = dense.manifest.encoder_pruning
    if pruning is not None:
        raise UsageError(
            f"--dense {dense.path}: its vision encoder prunes ({pruning.rule}); give a bundle of the same checkpoint "
            "exported without --encoder options"
        )
    if ours.manifest.encoder_pruning is None:
        raise UsageError(
            f"--dense {dense.path}: the vision encoder of bundle {ours.path} prunes nothing either; give one exported "
            "with --encoder-flops, or name the other bundle with --against"
        )


def _check_runs(name: str, manifest: Manifest) -> None:
    """Raises UsageError where a runtime, one of RUNTIMES, is not set up for such a model."""
    if manifest.model.frames is not None:
        raise UsageError(
            f"--against {name}: the bundle is {manifest.model.family}, which no other runtime is timed with; accepted: "
            "folders of other bundles"
        )


def _check_same(first: Bundle, other: Bundle) -> None:
    """Raises UsageError where they can't be asked the same, or do other work for it."""
    ours, theirs = _sizes(first), _sizes(other)
    for what, size in ours.items():
        if theirs[what] != size:
            raise UsageError(
                f"--against {other.path}: its {what} is {theirs[what]}, that of {first.path} is {size}; bundles timed "
                "side by side must take the same input and have the same sizes: give one made from the same checkpoint"
            )


def _sizes(bundle: Bundle) -> Mapping[str, object]:
    manifest = bundle.manifest
    found: dict[str, object] = {
        "kind of language model": manifest.model.language,
        "image size": f"{manifest.image.width} x {manifest.image.height}",
        "number of query tokens" if manifest.vote else "number of image tokens": manifest.tokens,
        "number of positions": manifest.text.max_positions,
    }
    for part, sizes in asdict(read_geometry(bundle)).items():
        found |= (
            {} if sizes is None else {f"{part} model's {name.replace('_', ' ')}": size for name, size in sizes.items()}
        )
    return found


def find_checkpoint(manifest: Manifest, given: str | None) -> str:
    """Where the weights of contenders are: as given, or those of the demo.

    Raises:
        UsageError: none was given, and the bundle is not the demo's.
    """
    if given is not None:
        return given
    if manifest.model.id != "catp-demo":
        raise UsageError(
            f"--against: contenders need the weights that this bundle was exported from ({manifest.model.id}); name "
            "their folder or Hub id with --checkpoint"
        )
    from catp.export.demo import CHECKPOINT

    return str(CHECKPOINT)


def open_contender(name: str, checkpoint: str, threads: int, kind: LanguageKind) -> Subject:
    """Load a runtime, one of RUNTIMES.

    Args:
        kind: of the bundle's language model.

    Raises:
        UsageError: its checkpoint can't be loaded, or what it needs is missing.
    """
    runtime = RUNTIMES[name]
    module, subject = runtime.tasks[kind]
    opened = getattr(importlib.import_module(f"{__package__}.{module}"), subject)
    found: Subject = opened(name, checkpoint, threads, kind, **runtime.options)
    return found
