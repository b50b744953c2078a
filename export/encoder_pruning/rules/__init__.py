"""Scoring rules inside the vision encoder: which image tokens go on. One file each, registered in RULES."""

from __future__ import annotations

from catp.export.encoder_pruning.rules.base import ScoringRule, TokenEvidence
from catp.export.encoder_pruning.rules.cls import Cls
from catp.export.encoder_pruning.rules.madtp import Madtp
from catp.export.encoder_pruning.rules.norm import Norm
from catp.export.encoder_pruning.rules.pitome import ProtectInformative
from catp.export.encoder_pruning.rules.random_order import RandomOrder
from catp.export.encoder_pruning.rules.self_cls import SelfAndCls
from catp.export.encoder_pruning.rules.taught import Taught
from catp.export.encoder_pruning.rules.tome import TokenMerging
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
