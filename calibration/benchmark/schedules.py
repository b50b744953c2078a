"""Schedules of a vision encoder that prunes, as they are timed: what each layer keeps, and the work that is left."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from catp.runtime.bundle.encoder_pruning import EncoderPruningSpec, Merge, Rule
from catp.runtime.bundle.folder import Bundle
from catp.runtime.bundle.strict import Strict
from catp.runtime.errors import UsageError
from catp.runtime.image_sides.pruned_encoder import EncoderWish


class Schedule(Strict):
    """One schedule of one bundle's encoder; GFLOPs are those of an image, a multiply-add being two."""

    flops: float | None = Field(
        description="share of the dense encoder's work that was asked for; None: the bundle's own schedule"
    )
    rule: Rule
    merge: Merge
    layers: tuple[int, ...] = Field(description="those that prune, from 0")
    kept_tokens: tuple[int, ...] = Field(description="by each of them, CLS not counted")
    left: int = Field(description="image tokens that leave the encoder, CLS among them")
    share: float = Field(description="of the dense encoder's work that is left, scores not counted")
    gflops: float
    gflops_dense: float

    @property
    def wish(self) -> EncoderWish:
        """The counts, so that no answer that is timed works them out from the share again."""
        return EncoderWish(kept_tokens=self.kept_tokens)


def find_schedules(bundles: Mapping[str, Bundle], shares: tuple[float, ...]) -> dict[str, tuple[Schedule, ...]]:
    """The schedules that each bundle is timed with, by its name; none for encoders that are dense or count by
    themselves.

    Args:
        shares: of the dense encoder's work, as asked for; empty: each bundle's own schedule alone.

    Raises:
        UsageError: no encoder takes such a share, or one can't keep it.
    """
    found = {}
    for name, bundle in bundles.items():
        spec = bundle.manifest.encoder_pruning
        if spec is not None and spec.form == "schedule":
            found[name] = tuple(_schedule(bundle, spec, share) for share in shares or (None,))
        elif spec is not None and shares:
            raise UsageError(
                f"--encoder-flops: the vision encoder of bundle {bundle.path} counts tokens by its temperature; leave "
                "the option or the bundle out, or export it with --encoder-form schedule"
            )
    if shares and not found:
        named = ", ".join(str(bundle.path) for bundle in bundles.values())
        raise UsageError(
            f"--encoder-flops: no vision encoder of {named} prunes; give a bundle exported with --encoder-flops"
        )
    return found


def _schedule(bundle: Bundle, spec: EncoderPruningSpec, share: float | None) -> Schedule:
    try:
        kept = EncoderWish(flops=share).schedule(spec)
    except UsageError as error:
        raise UsageError(f"bundle {bundle.path}: {error}") from None
    return Schedule(
        flops=share,
        rule=spec.rule,
        merge=spec.merge,
        layers=spec.layers,
        kept_tokens=kept,
        left=spec.tokens_by_layer(kept)[-1][1],
        share=spec.gflops(kept) / spec.gflops_dense,
        gflops=spec.gflops(kept),
        gflops_dense=spec.gflops_dense,
    )
