"""The option by which commands take a schedule of a vision encoder that prunes."""

from __future__ import annotations

from typing import Annotated

import typer

from catp.runtime.errors import UsageError

KeptOption = Annotated[
    str | None,
    typer.Option(
        help="Instead of a share: tokens that each pruning layer keeps, such as 120,90,60.",
        rich_help_panel="In a vision encoder that prunes",
    ),
]


def parse_counts(text: str | None) -> tuple[int, ...] | None:
    """Counts separated by commas.

    Raises:
        UsageError: they are not.
    """
    try:
        return None if text is None else tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"--encoder-kept {text!r}: give whole numbers separated by commas, such as 120,90,60"
        ) from None
