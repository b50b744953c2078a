"""The options by which commands take what a vision encoder that prunes keeps."""

from __future__ import annotations

from typing import Annotated

import typer

from catp.runtime.errors import UsageError

ENCODER_PANEL = "In a vision encoder that prunes"

FlopsOption = Annotated[
    float | None,
    typer.Option(
        help="Share of the dense encoder's work that remains, such as 0.5. Default: the bundle's.",
        rich_help_panel=ENCODER_PANEL,
    ),
]

KeptOption = Annotated[
    str | None,
    typer.Option(
        help="Instead of a share: tokens that each pruning layer keeps, such as 120,90,60.",
        rich_help_panel=ENCODER_PANEL,
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
