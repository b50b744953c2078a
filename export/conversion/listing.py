"""Listing of the names of tensors: those that differ in the number of their layer are one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

_SHOWN = 30


def listed(names: Iterable[str]) -> str:
    """The names, sorted, as `blocks.*.norm1.bias (12)`; of very many kinds the first."""
    kinds = Counter(re.sub(r"(?<=\.)\d+(?=\.)", "*", name[:200]) for name in names)
    shown = [name if count == 1 else f"{name} ({count})" for name, count in sorted(kinds.items())]
    return ", ".join(shown[:_SHOWN]) + (f" and {len(shown) - _SHOWN} more kinds" if len(shown) > _SHOWN else "")
