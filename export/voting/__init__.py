"""Voting methods: how attention and embeddings become `token_scores`. One file each, registered in METHODS."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_args, get_type_hints

from catp.export.voting.base import VotingMethod
from catp.export.voting.catp import RankPoints
from catp.export.voting.coverage import Coverage
from catp.export.voting.distinct import Distinct
from catp.export.voting.l2_norm import L2Norm
from catp.export.voting.none import KeepAll
from catp.export.voting.random_order import RandomOrder
from catp.export.voting.self_attention import SelfAttention
from catp.runtime.errors import UsageError

METHODS: dict[str, type[Any]] = {
    method.name: method for method in (RankPoints, Coverage, Distinct, L2Norm, SelfAttention, RandomOrder, KeepAll)
}


def make_method(name: str, options: Mapping[str, Any] | None = None) -> VotingMethod:
    """The method of that name.

    Args:
        options: those that were given; the method's defaults stand for the others.

    Raises:
        UsageError: no such method, or it does not take an option, or not that value.
    """
    if name not in METHODS:
        raise UsageError(f"method {name!r}: unknown; accepted: {', '.join(METHODS)}")
    method = METHODS[name]
    hints = get_type_hints(method)
    known = {field.name for field in fields(method)}
    for option, value in (options or {}).items():
        flag = f"--{option.replace('_', '-')}"
        if option not in known:
            takers = ", ".join(other.name for other in METHODS.values() if option in {f.name for f in fields(other)})
            raise UsageError(f"{flag}: method {name} does not take it; it is for {takers or 'no method'}")
        accepted = [choice for choice in get_args(hints[option]) if isinstance(choice, str)]
        if accepted and value not in accepted:
            raise UsageError(f"{flag} {value}: method {name} accepts {', '.join(accepted)}")
    made: VotingMethod = method(**(options or {}))
    return made
