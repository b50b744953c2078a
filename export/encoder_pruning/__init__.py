"""Pruning inside a vision encoder: rules that score image tokens, merges of the others, formulas to check both."""

from __future__ import annotations

from catp.export.encoder_pruning.rules import RULES, ScoringRule, TokenEvidence, make_rule

__all__ = ["RULES", "ScoringRule", "TokenEvidence", "make_rule"]
