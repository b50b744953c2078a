"""A chosen schedule as a bundle's default."""

from __future__ import annotations

from collections.abc import Sequence

from catp.runtime.bundle.encoder_pruning import ScheduleConfirmation
from catp.runtime.bundle.manifest import Manifest


def with_schedule(
    manifest: Manifest, kept_tokens: Sequence[int], source: str, confirmed: ScheduleConfirmation
) -> Manifest:
    """The manifest of a bundle whose encoder prunes, with another schedule.

    Args:
        source: where the schedule comes from, for people.
    """
    spec = manifest.encoder_pruning
    assert spec is not None
    changed = spec.model_copy(
        update={
            "kept_tokens": tuple(kept_tokens),
            "gflops_pruned": spec.gflops(kept_tokens),
            "source": source,
            "confirmed": confirmed,
        }
    )
    return manifest.model_copy(update={"encoder_pruning": changed})
