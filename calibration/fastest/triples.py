"""Triples of bundle, encoder schedule and ratio: what is tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import Field

from catp.calibration.benchmark.contenders.subject import Case
from catp.calibration.benchmark.options import RATIOS, parse_ratios, parse_shares
from catp.calibration.benchmark.schedules import Schedule, find_schedules
from catp.calibration.fastest.bundles import can_drop
from catp.runtime.bundle.folder import Bundle
from catp.runtime.bundle.strict import Strict
from catp.runtime.errors import UsageError

DENSE = 1.0
"""The share of the work that stands for encoders that prune nothing."""


class Triple(Strict):
    """A bundle, how much its vision encoder keeps, and how many query tokens are left out after it."""

    bundle: str = Field(description="its name in the report")
    encoder_flops: float | None = Field(
        default=None, description="share of the dense encoder's work that was asked for; none: dense, or its default"
    )
    kept_tokens: tuple[int, ...] | None = Field(default=None, description="by its layers; none: dense")
    ratio: float | None = Field(default=None, description="of query tokens left out; none: nothing votes")

    @property
    def case(self) -> Case:
        """The same, as it is timed: one picture at a time."""
        return Case(1, self.bundle, self.ratio or 0.0, self.encoder_flops)

    @property
    def encoder(self) -> str:
        """The work of its vision encoder, in words."""
        if self.kept_tokens is None:
            return "dense"
        return "schedule" if self.encoder_flops is None else f"{self.encoder_flops:g}"

    def __str__(self) -> str:
        encoder = "" if self.kept_tokens is None else f", encoder {self.encoder}"
        return self.bundle + encoder + ("" if self.ratio is None else f", ratio {self.ratio:g}")


def make_triples(
    bundles: Mapping[str, Bundle], ratios: str | None, shares: str | None
) -> tuple[list[Triple], dict[str, tuple[Schedule, ...]]]:
    """Every triple, the unpruned first bundle before all others; and the schedules of encoders that prune, by bundle.

    Args:
        bundles: by name, the first of them dense.
        ratios: as asked for; None: the usual ones, of bundles that vote.
        shares: of the dense encoder's work, as asked for; None: each bundle's own schedule.

    Raises:
        UsageError: none of the bundles can prune so, or nothing but the unpruned bundle is left.
    """
    wanted = parse_ratios(RATIOS if ratios is None else ratios)
    if ratios is not None and any(wanted) and not any(can_drop(bundle.manifest) for bundle in bundles.values()):
        family = next(iter(bundles.values())).manifest.model.family
        raise UsageError(
            f"ratios {ratios!r}: none of the bundles ({family}) votes for query tokens that could be left out; leave "
            "--ratios out"
        )
    schedules = find_schedules(bundles, _without_dense(bundles, shares))
    triples = []
    for name, bundle in bundles.items():
        of_bundle: Sequence[Schedule | None] = schedules.get(name, (None,))
        amounts = wanted if can_drop(bundle.manifest) else (0.0,)
        for schedule in of_bundle:
            for ratio in amounts:
                triples.append(
                    Triple(
                        bundle=name,
                        encoder_flops=None if schedule is None else schedule.flops,
                        kept_tokens=None if schedule is None else schedule.kept_tokens,
                        ratio=None if bundle.manifest.vote is None else ratio,
                    )
                )
    if len(triples) == 1:
        raise UsageError(
            f"bundle {next(iter(bundles.values())).path}: alone and unpruned, there is nothing to choose among; give "
            "--ratios above 0, or more bundles of the checkpoint"
        )
    return triples, schedules


def _without_dense(bundles: Mapping[str, Bundle], shares: str | None) -> tuple[float, ...]:
    """The shares that schedules are made for: 1 stands for bundles whose encoders are dense, which need none.

    Raises:
        UsageError: they are no shares; or 1 alone is asked of an encoder that prunes.
    """
    if shares is None:
        return ()
    parts = [part for part in shares.split(",") if not _is_dense(part)]
    if parts:
        return parse_shares(",".join(parts))
    for bundle in bundles.values():
        if bundle.manifest.encoder_pruning is not None:
            raise UsageError(
                f"--encoder-flops {shares}: the vision encoder of bundle {bundle.path} always prunes; give a share "
                "below 1 as well, or leave this bundle out"
            )
    return ()


def _is_dense(part: str) -> bool:
    try:
        return float(part) == DENSE
    except ValueError:
        return False
