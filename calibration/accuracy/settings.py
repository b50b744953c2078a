"""The settings that an evaluation compares: voting methods, ratios or shares of the votes, and position modes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from catp.runtime.bundle.manifest import Manifest, Method, Positions, scores_of
from catp.runtime.errors import UsageError
from catp.runtime.pruning import check_mass, check_ratio

RANDOM = "random"
"""Drawn anew for every question, not read from the graph."""


@dataclass(frozen=True)
class Setting:
    """One way of pruning: by a method, at a ratio or (exactly one of them) for a share of each image's votes."""

    method: str
    positions: Positions
    ratio: float | None = None
    keep_mass: float | None = None


@dataclass(frozen=True)
class Grid:
    """All combinations that are asked for.

    Random scores are no votes, a share of which could be kept: `keep_masses` are for the other methods.

    Raises:
        UsageError: a number is out of range, or a method can't do what is asked of it.
    """

    methods: tuple[str, ...]
    ratios: tuple[float, ...]
    positions: tuple[Positions, ...]
    keep_masses: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for ratio in self.ratios:
            check_ratio(ratio)
        for mass in self.keep_masses:
            check_mass(mass)
        if "none" in self.methods and (any(self.ratios) or self.keep_masses):
            raise UsageError("methods none: it keeps every token; give --ratios 0, or other --methods")
        if self.keep_masses and set(self.methods) == {RANDOM}:
            raise UsageError("keep mass: random tokens have no votes to keep a share of; name another method as well")

    def settings(self) -> tuple[Setting, ...]:
        """In the order in which predictions list them."""
        return tuple(
            Setting(method, positions, ratio, mass)
            for ratio, mass in [*((ratio, None) for ratio in self.ratios), *((None, m) for m in self.keep_masses)]
            for method in self.methods
            for positions in self.positions
            if mass is None or method != RANDOM
        )


def score_outputs(manifest: Manifest) -> dict[str, str]:
    """The Q-Former graph's output with the scores of each method that it votes by, the bundle's own method first.

    A bundle that votes for none keeps every token, as the method none does.
    """
    if manifest.vote is None:
        return {"none": "token_scores"}
    own = manifest.vote.method
    found: dict[str, str] = {} if own == RANDOM else {own: "token_scores"}
    outputs = {tensor.name for tensor in manifest.graphs["qformer_voting"].outputs}
    for method in get_args(Method):
        if scores_of(method) in outputs:
            found.setdefault(method, scores_of(method))
    return found


def check_methods(manifest: Manifest, methods: Sequence[str]) -> tuple[str, ...]:
    """The methods themselves, each once.

    Raises:
        UsageError: one is unknown, or this bundle has no scores of it.
    """
    available = [*score_outputs(manifest), RANDOM]
    if manifest.vote is None and set(methods) != {"none"}:
        raise UsageError(
            f"methods {','.join(methods)}: {manifest.model.family} has no query tokens to leave out; leave them out"
        )
    for method in methods:
        if method not in available:
            raise UsageError(
                f"methods {method!r}: this bundle has no such scores; accepted: {', '.join(available)}; "
                "one exported with catp-export --diagnostics has more"
            )
    return tuple(dict.fromkeys(methods))
