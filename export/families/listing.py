"""The output of `catp-export --list-families`."""

from __future__ import annotations

from typing import Any

from catp.export.families import FAMILIES, Family
from catp.runtime.bundle.chains import make_chain


def families_as_json() -> list[dict[str, Any]]:
    """One object for each family, its graphs in the order of the pipeline."""
    return [
        {
            "family": family.name,
            "model_type": family.model_type,
            "language_models": family.language.accepts,
            "votes_read": _read(family),
            "graphs": list(make_chain(family.image_encoder.side, family.language.kind).graphs),
        }
        for family in FAMILIES.values()
    ]


def families_as_text() -> str:
    """The same for people, a paragraph each."""
    return "\n".join(
        f"{found['family']} (model_type {found['model_type']})\n"
        f"  language models: {found['language_models']}\n"
        f"  votes depend on: {found['votes_read']}\n"
        f"  graphs:          {', '.join(found['graphs'])}"
        for found in families_as_json()
    )


def _read(family: Family) -> str:
    if not family.votes:
        return "nothing: every image token is kept"
    return "image and prompt" if family.reads_instruction else "image"
