"""Scoring rules inside the vision encoder: which image tokens go on. One file each, registered in RULES."""

from __future__ import annotations

from catp.export.encoder_pruning.base import ScoringRule, TokenEvidence
from catp.export.encoder_pruning.cls import Cls
from catp.export.encoder_pruning.madtp import Madtp
from catp.export.encoder_pruning.norm import Norm
from catp.export.encoder_pruning.pitome import ProtectInformative
from catp.export.encoder_pruning.random_order import RandomOrder
from catp.export.encoder_pruning.self_cls import SelfAndCls
from catp.export.encoder_pruning.taught import Taught
from catp.export.encoder_pruning.tome import TokenMerging
from catp.runtime.errors import UsageError

RULES: dict[str, type[ScoringRule]] = {
    rule.name: rule for rule in (Madtp, SelfAndCls, Cls, TokenMerging, ProtectInformative, Norm, Taught, RandomOrder)
}


def make_rule(name: str) -> ScoringRule:
    """The rule of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in RULES:
        raise UsageError(f"encoder pruning {name!r}: unknown; accepted: none, {', '.join(RULES)}")
    return RULES[name]()


__all__ = ["RULES", "ScoringRule", "TokenEvidence", "make_rule"]
