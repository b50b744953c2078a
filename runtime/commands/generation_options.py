"""The options by which commands take how tokens are chosen."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

CHOICE_PANEL = "How tokens are chosen"

SampleOption = Annotated[
    bool | None, typer.Option("--sample/--no-sample", help="Draw tokens at random.", rich_help_panel=CHOICE_PANEL)
]

TemperatureOption = Annotated[
    float | None, typer.Option(help="Scores are divided by it before drawing.", rich_help_panel=CHOICE_PANEL)
]

TopKOption = Annotated[
    int | None,
    typer.Option(
        help="Draw one of so many likeliest tokens (50 unless told); 0: of all.", rich_help_panel=CHOICE_PANEL
    ),
]

TopPOption = Annotated[
    float | None,
    typer.Option(
        help="Draw one of the likeliest tokens with this probability together (0: one).", rich_help_panel=CHOICE_PANEL
    ),
]

BeamsOption = Annotated[
    int | None, typer.Option(help="Search with so many beams; 1: no search.", rich_help_panel=CHOICE_PANEL)
]

LengthPenaltyOption = Annotated[
    float | None,
    typer.Option(help="Exponent of the length that a beam's score is divided by.", rich_help_panel=CHOICE_PANEL),
]

EarlyStoppingOption = Annotated[
    Literal["yes", "no", "never"] | None,
    typer.Option(
        help="End a search with as many answers as beams, or where better ones are unlikely (no) or impossible "
        "(never).",
        rich_help_panel=CHOICE_PANEL,
    ),
]

MinNewTokensOption = Annotated[
    int | None, typer.Option(help="Tokens before an answer may end.", rich_help_panel=CHOICE_PANEL)
]

_EARLY: dict[str, bool | Literal["never"]] = {"yes": True, "no": False, "never": "never"}


def early(choice: Literal["yes", "no", "never"] | None) -> bool | Literal["never"] | None:
    """The setting early_stopping; None where nothing is asked for."""
    return None if choice is None else _EARLY[choice]
