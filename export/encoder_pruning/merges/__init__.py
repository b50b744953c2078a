"""Merges of image tokens that are not kept. One file each, registered in MERGES."""

from __future__ import annotations

from catp.export.encoder_pruning.merges.base import Chosen, Merging, Tokens
from catp.export.encoder_pruning.merges.dropped import Dropped
from catp.export.encoder_pruning.merges.nearest import Nearest
from catp.export.encoder_pruning.merges.one_token import OneToken
from catp.runtime.bundle.encoder_pruning import Merge

MERGES: dict[Merge, Merging] = {"one": OneToken(), "nearest": Nearest(), "drop": Dropped()}

__all__ = ["MERGES", "Chosen", "Merging", "Tokens"]
