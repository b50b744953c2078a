"""Listing of the names of tensors: those that differ in the number of their layer are one."""

from __future__ import annotations

import re
from collections.abc import Iterable

_SHOWN = 30


def listed(names: Iterable[str]) -> str:
    """The names, sorted, as `blocks.*.norm1.bias (12)`; of very many kinds the first."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "*", name[:200]), []).append(name[:200])
    shown = [same[0] if len(same) == 1 else f"{kind} ({len(same)})" for kind, same in sorted(kinds.items())]
    return ", ".join(shown[:_SHOWN]) + (f" and {len(shown) - _SHOWN} more kinds" if len(shown) > _SHOWN else "")
