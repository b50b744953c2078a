"""A bundle as a report describes it."""

from __future__ import annotations

import json

from pydantic import BaseModel, ConfigDict, Field

from catp.runtime.bundle.folder import Bundle
from catp.runtime.bundle.manifest import Method, ModelSpec, Positions, Precision
from catp.runtime.errors import BundleError

RANDOM_WEIGHTS = "random_weights"
"""Set in config.json of a checkpoint that nobody trained; bundles made from it carry the file along."""


class Described(BaseModel):
    """Where it is, what it was made from, and how it computes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    model: ModelSpec
    precision: Precision
    method: Method
    num_query_tokens: int = Field(description="or image tokens, of a bundle that votes for none")
    positions: Positions
    parameters: dict[str, int] = Field(description="by graph")
    sha256: dict[str, str] = Field(description="of each graph's file")
    # Reports of before bundles could be timed against each other have none of these.
    precisions: dict[str, str] = Field(default={}, description='by graph: "fp32", or "int8 (fp32), for cpu"')
    bytes: dict[str, int] = Field(default={}, description="of each graph with its weights, on disk")
    encoder: str = Field(default="dense", description='or rule and form of one that prunes: "cls, schedule"')
    random_weights: bool = Field(default=False, description="made of its sizes alone: its answers mean nothing")

    @property
    def precision_label(self) -> str:
        """For a title: one precision where all graphs have the same."""
        labels = self.precisions or {"": self.precision}
        if len(set(labels.values())) == 1:
            return next(iter(labels.values()))
        return "; ".join(f"{graph} {label}" for graph, label in labels.items())


def describe(bundle: Bundle, positions: Positions) -> Described:
    """Args: positions: of kept tokens, as it is timed."""
    manifest = bundle.manifest
    pruning = manifest.encoder_pruning
    return Described(
        path=str(bundle.path),
        model=manifest.model,
        precision=manifest.precision,
        method=manifest.vote.method if manifest.vote else "none",
        num_query_tokens=manifest.tokens,
        positions=positions,
        parameters={name: graph.parameters for name, graph in manifest.graphs.items()},
        sha256={name: graph.file.sha256 for name, graph in manifest.graphs.items()},
        precisions={name: graph.precision_label for name, graph in manifest.graphs.items()},
        bytes={name: graph.bytes for name, graph in manifest.graphs.items()},
        encoder=f"{pruning.rule}, {pruning.form}" if pruning else "dense",
        random_weights=_has_random_weights(bundle),
    )


def _has_random_weights(bundle: Bundle) -> bool:
    try:
        return bool(json.loads((bundle.path / "config.json").read_text()).get(RANDOM_WEIGHTS, False))
    except (OSError, ValueError, AttributeError) as error:
        raise BundleError(f"bundle {bundle.path}: config.json can't be read ({error}); export it again") from None
