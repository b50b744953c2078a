"""Scores of texts against images, one file for each kind of model."""

from __future__ import annotations

from catp.runtime.matching.queries import Match, Matching, Scores

__all__ = ["Match", "Matching", "Scores"]
