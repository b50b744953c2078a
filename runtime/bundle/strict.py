"""The base of everything that is written as JSON and read back: unknown fields are refused, and nothing changes."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """A frozen record without room for fields that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)
