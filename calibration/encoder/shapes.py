"""Shapes of schedules: the same share of an encoder's work, taken from earlier or from later layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from catp.runtime.bundle.encoder_pruning import EncoderPruningSpec
from catp.runtime.bundle.encoder_schedules import even_schedule, shaped_schedule
from catp.runtime.errors import UsageError

EVEN = "same share in each layer"

TILTS = {
    "later layers prune more": 0.5,
    "earlier layers prune more": -0.5,
    "last layers prune most": 1.0,
    "first layers prune most": -1.0,
}
"""Weights rise from 1 - tilt at the first layer that prunes to 1 + tilt at the last one."""

NEAR = 0.01
"""A schedule whose share of the work is further from the even one's is no candidate: it would win or lose by that."""


@dataclass(frozen=True)
class Shape:
    """A schedule, and what it is for people."""

    name: str
    kept_tokens: tuple[int, ...]


def candidates(spec: EncoderPruningSpec, share: float) -> tuple[Shape, ...]:
    """Schedules of nearly the same work, each once: the even one first, then those that differ from it ever more.

    A shape that leaves another share of the work (few layers can't leave out enough) is not among them.

    Raises:
        UsageError: no schedule leaves this share.
    """
    even = even_schedule(spec, share)
    found = {even: EVEN}
    work = spec.gflops(even)
    for name, weights in _weights(len(spec.layers)):
        try:
            kept = _levelled(spec, shaped_schedule(spec, share, weights), work)
        except UsageError:
            continue
        if abs(spec.gflops(kept) - work) <= NEAR * spec.gflops_dense:
            found.setdefault(kept, name)
    return tuple(Shape(name, kept) for kept, name in found.items())


def _weights(layers: int) -> Iterator[tuple[str, list[float]]]:
    if layers == 1:
        return
    for name, tilt in TILTS.items():
        yield name, [1 + tilt * (2 * place / (layers - 1) - 1) for place in range(layers)]
    half = layers // 2
    yield "last half of the layers prunes", [float(place >= layers - half) for place in range(layers)]
    yield "first half of the layers prunes", [float(place < half) for place in range(layers)]


def _levelled(spec: EncoderPruningSpec, kept: Sequence[int], work: float) -> tuple[int, ...]:
    """The schedule with single counts moved by one while that brings it nearer to the work, in GFLOPs."""
    best = tuple(kept)
    while True:
        moved = [
            (*best[:place], best[place] + step, *best[place + 1 :]) for place in range(len(best)) for step in (-1, 1)
        ]
        nearest = min(
            (one for one in moved if _can_keep(spec, one)), key=lambda one: abs(spec.gflops(one) - work), default=best
        )
        if abs(spec.gflops(nearest) - work) >= abs(spec.gflops(best) - work):
            return best
        best = nearest


def _can_keep(spec: EncoderPruningSpec, kept: Sequence[int]) -> bool:
    try:
        spec.check(kept)
    except UsageError:
        return False
    return True
