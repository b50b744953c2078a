"""A chosen ratio as a bundle's default."""

from __future__ import annotations

from catp.runtime.bundle.manifest import Manifest, Positions


def with_ratio(manifest: Manifest, ratio: float, positions: Positions) -> Manifest:
    """The manifest with another ratio and other positions, in place of a share of the votes too.

    Raises:
        UsageError: nothing votes.
    """
    vote = manifest.pruning.model_copy(update={"ratio": ratio, "keep_mass": None, "positions": positions})
    return manifest.model_copy(update={"vote": vote})
