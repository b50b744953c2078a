"""The bundle that a schedule is measured against: the same checkpoint, dense or counting for itself."""

from __future__ import annotations

from catp.calibration.encoder.answering import check_encoder
from catp.calibration.encoder.search import Wanted
from catp.runtime.bundle.encoder_pruning import EncoderPruningSpec
from catp.runtime.bundle.manifest import Manifest
from catp.runtime.errors import UsageError
from catp.runtime.pipeline import Pipeline

_CHECKPOINT_FILES = ("config.json", "tokenizer.json", "preprocessor_config.json")


def check_reference(pipeline: Pipeline, reference: Pipeline) -> EncoderPruningSpec:
    """The bundle's pruning; raises UsageError where it has none, or the reference can't stand beside it."""
    check_encoder(pipeline, "catp-calibrate schedule")
    spec, other = pipeline.manifest.encoder_pruning, reference.manifest.encoder_pruning
    assert spec is not None
    if spec.form != "schedule":
        raise UsageError(
            f"{pipeline.bundle.path}: its encoder counts tokens for itself (dynamic form); give one that was exported "
            "with --encoder-flops, and this one with --against"
        )
    if other is not None and (other.form != "dynamic" or other.layers != spec.layers):
        raise UsageError(
            f"--against {reference.bundle.path}: it has a schedule, or prunes in other layers; give a dense bundle, or "
            f"one in the dynamic form that prunes in layers {', '.join(map(str, spec.layers))}"
        )
    if other is not None and (other.rule, other.merge) != (spec.rule, spec.merge):
        raise UsageError(
            f"--against {reference.bundle.path}: it prunes by {other.rule} ({other.merge}), not by {spec.rule} "
            f"({spec.merge}); export both with the same rule"
        )
    if _identity(pipeline.manifest) != _identity(reference.manifest):
        raise UsageError(
            f"--against {reference.bundle.path}: it is another checkpoint, or in another precision; export the same one"
        )
    return spec


def check_votes_alike(pipeline: Pipeline, reference: Pipeline, wanted: Wanted) -> None:
    """Refuse votes whose difference would be taken for the encoder's.

    Raises:
        UsageError: query tokens of the reference are left out too, and by another vote.
    """
    ours, theirs = pipeline.manifest.vote, reference.manifest.vote
    if ours is None or theirs is None or wanted.dense_ratio == 0:
        return
    by_mass = wanted.dense_ratio is None
    if (ours.method, ours.options, ours.positions, by_mass and ours.keep_mass) != (
        theirs.method,
        theirs.options,
        theirs.positions,
        by_mass and theirs.keep_mass,
    ):
        raise UsageError(
            f"--against {reference.bundle.path}: it votes by {theirs.method} ({theirs.positions} positions), the "
            f"other by {ours.method} ({ours.positions} positions), or with other options; export both with the same "
            "vote, or give --ratios, which compares with all query tokens"
        )


def _identity(manifest: Manifest) -> tuple[object, ...]:
    """The marks that two bundles of one checkpoint share: its files, and the weights that nothing prunes."""
    files = {file.path: file.sha256 for file in manifest.files}
    last = manifest.graphs[manifest.chain.graphs[-1]]
    weights = (last.external_data or last.file).sha256
    return manifest.precision, weights, *(files.get(name) for name in _CHECKPOINT_FILES)
