"""Bundles of one checkpoint side by side: in several precisions, with and without a vision encoder that prunes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from catp.calibration.benchmark.contenders.registry import free_name
from catp.calibration.benchmark.contenders.runtimes import RUNTIMES
from catp.calibration.supported import check_answers, check_data
from catp.runtime.bundle.folder import Bundle, open_bundle
from catp.runtime.bundle.manifest import Manifest
from catp.runtime.errors import UsageError

COMMAND = "catp-calibrate fastest"
_CHECKPOINT_FILES = ("config.json", "tokenizer.json", "preprocessor_config.json")


def open_side_by_side(folders: Sequence[Path], data: str) -> dict[str, Bundle]:
    """The bundles by the names of their folders, with a number behind a name that is taken.

    Args:
        data: what they will be asked, as `open_data` takes it.

    Raises:
        UsageError: one is no bundle, can't be asked, or is of another checkpoint than the first; or the first one
            prunes inside its encoder, so that nothing is unpruned; the message names it.
        BundleError: one is incomplete or altered.
    """
    found: dict[str, Bundle] = {}
    seen: set[Path] = set()
    for folder in folders:
        bundle = open_bundle(folder)
        if (place := folder.resolve()) in seen:
            raise UsageError(f"bundle {folder}: it is given twice; give each bundle once")
        seen.add(place)
        check_answers(bundle, COMMAND)
        check_data(bundle, data, COMMAND)
        _check_encoder(bundle, is_first=not found)
        if found:
            _check_checkpoint(next(iter(found.values())), bundle)
        found[free_name(place.name or "bundle", {*RUNTIMES, *found})] = bundle
    return found


def can_drop(manifest: Manifest) -> bool:
    """Whether it votes for query tokens, so that a ratio above 0 can be asked of it."""
    return manifest.vote is not None and manifest.vote.method != "none"


def content_of(manifest: Manifest) -> str:
    """sha256 in hex of all that decides the answers at a given ratio and schedule.

    Defaults of both are left out: a run that wrote its choice into the manifest can be taken up again.
    """
    vote = manifest.vote
    content = {
        "graphs": {name: [part and part.sha256 for part in (graph.file, graph.external_data)]
                   for name, graph in sorted(manifest.graphs.items())},
        "files": {file.path: file.sha256 for file in manifest.files},
        "image": manifest.image.model_dump(mode="json"),
        "text": manifest.text.model_dump(mode="json"),
        "vote": vote and vote.model_dump(mode="json", exclude={"ratio", "keep_mass"}),
    }  # fmt: skip
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _check_encoder(bundle: Bundle, is_first: bool) -> None:
    """Raises UsageError where the first bundle prunes, or an encoder decides by itself how much it does."""
    manifest = bundle.manifest
    pruning, question = manifest.encoder_pruning, manifest.question_pruning
    if is_first and (pruning is not None or question is not None):
        part = "vision encoder" if pruning is not None else "question encoder"
        raise UsageError(
            f"bundle {bundle.path}: its {part} always prunes, and losses are counted from the unpruned checkpoint; "
            "give a bundle of it with dense encoders first"
        )
    if pruning is not None and pruning.form == "dynamic":
        raise UsageError(
            f"bundle {bundle.path}: its vision encoder counts tokens picture by picture (dynamic form), so its time "
            "would be that of the picture that is timed; export it with --encoder-form schedule"
        )


def _check_checkpoint(first: Bundle, other: Bundle) -> None:
    """Raises UsageError where two bundles were not made from one checkpoint."""
    ours, theirs = _identity(first.manifest), _identity(other.manifest)
    for what, value in ours.items():
        if theirs[what] != value:
            shown = f"{theirs[what]}, that of {first.path} is {value}" if what in _NAMED else "another one"
            raise UsageError(
                f"bundle {other.path}: its {what} is {shown}; bundles of one checkpoint are compared: give those that "
                f"catp-export or catp-calibrate precision made from the checkpoint of {first.path}"
            )
    if not _share_weights(first.manifest, other.manifest):
        raise UsageError(
            f"bundle {other.path}: its language model has other weights than that of {first.path}, or was calibrated "
            "from another bundle; bundles of one checkpoint are compared: give those that catp-export or "
            f"catp-calibrate precision made from the checkpoint of {first.path}"
        )


_NAMED = ("family", "model", "revision", "adapter")
"""Marks that a message can repeat; of the others only sums are known."""


def _identity(manifest: Manifest) -> Mapping[str, object]:
    """The marks that all bundles of a checkpoint share."""
    model = manifest.model
    files = {file.path: file.sha256 for file in manifest.files}
    return {
        "family": model.family,
        "model": model.id,
        "revision": model.revision or "none",
        "adapter": model.adapter or "none",
        **{name: files.get(name) for name in _CHECKPOINT_FILES},
    }


def _share_weights(first: Manifest, other: Manifest) -> bool:
    """Whether the language models can be of the same weights; nothing prunes or votes in them.

    A calibrated bundle knows the graph that it was made from. Other float precisions have other bytes: of those the
    checkpoint's name and files are all that is known.
    """
    if first.precision != other.precision:
        return True
    last = first.chain.graphs[-1]
    if first.calibration is None and other.calibration is None:
        weights = [(graph.external_data or graph.file).sha256 for graph in (first.graphs[last], other.graphs[last])]
        return weights[0] == weights[1]
    sources = [
        one.graphs[last].file.sha256 if one.calibration is None else one.calibration.source_sha256.get(last)
        for one in (first, other)
    ]
    return sources[0] == sources[1]
