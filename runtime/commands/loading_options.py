"""Options of commands that load a bundle: the memory that it may need, and how its files are checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from catp.runtime.bundle.folder import open_bundle
from catp.runtime.bundle.footprint import Footprint, check_memory, estimate
from catp.runtime.bundle.manifest import Manifest
from catp.runtime.errors import UsageError
from catp.runtime.providers import ON_HOST

MaxMemoryOption = Annotated[
    float | None,
    typer.Option(
        metavar="GB",
        help="Refuse a bundle that needs more than so many GB, by an estimate, before it is loaded. Default: none is.",
    ),
]

RehashOption = Annotated[
    bool,
    typer.Option(
        "--rehash", help="Check every file's hash anew, also of those that nobody touched since they were hashed last."
    ),
]


def check_limit(most: float | None) -> None:
    """Raises UsageError where a limit is no amount of memory."""
    if most is not None and not (math.isfinite(most) and most > 0):
        raise UsageError(f"--max-memory {most}: GB of memory, more than 0")


def footprint(manifest: Manifest, provider: str, rows: int, slots: int) -> Footprint:
    """As `estimate`, for a provider by its name."""
    return estimate(manifest, rows, slots, widens_half=provider in ON_HOST)


def check_bundle(
    path: Path,
    provider: str,
    most: float | None,
    prompts: Sequence[str],
    beams: int | None = None,
    new_tokens: int | None = None,
) -> None:
    """Look at a bundle's manifest, where a limit is given, and at what is asked of it.

    A prompt has at most a token for each of its bytes, and one or two around it.

    Args:
        beams, new_tokens: None: the bundle's default.

    Raises:
        UsageError: it needs more than `most` GB.
        BundleError: it is no sound bundle.
    """
    check_limit(most)
    if most is None:
        return
    manifest = open_bundle(path, verify=False).manifest
    text = manifest.text
    longest = max(len(text.prompt_template) + len(prompt.encode(errors="replace")) for prompt in prompts)
    slots = manifest.tokens * (manifest.model.frames or 1) + longest + (new_tokens or text.max_new_tokens)
    if text.max_positions is not None:
        slots = min(slots, text.max_positions)
    rows = len(prompts) * (beams or manifest.generation.num_beams)
    check_memory(f"bundle {path}", footprint(manifest, provider, rows, slots), most)
