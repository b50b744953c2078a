"""The request of a generation: a batch of prompts, when each answer ends, and how its tokens are chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from catp.runtime.bundle.generation_settings import GenerationSettings
from catp.runtime.errors import UsageError
from catp.runtime.generation.stopping import Ending
from catp.runtime.language_models.base import Batch
from catp.runtime.limits import POSITIONS


@dataclass(frozen=True)
class Request:
    """Everything that decides the tokens, but for the model."""

    batch: Batch
    contexts: Sequence[Sequence[int]]  # per prompt, the ids before its answer, as `LanguageModel.context` has them
    max_new_tokens: Sequence[int]  # per prompt, at least 1
    ending: Ending
    settings: GenerationSettings


def limit_lengths(
    contexts: Sequence[Sequence[int]], max_new_tokens: int | None, default: int, settings: GenerationSettings
) -> list[int]:
    """The most tokens that each answer may have.

    Args:
        max_new_tokens: what was asked for; None: the settings' max_length, or else `default`.

    Raises:
        UsageError: there would be none, or more than any model has positions.
    """
    if max_new_tokens is None and settings.max_length is not None:
        longest = max(len(context) for context in contexts)
        if longest >= settings.max_length:
            raise UsageError(
                f"max_length {settings.max_length}: image and prompt alone have {longest} tokens; give max_new_tokens "
                "instead"
            )
        return [settings.max_length - len(context) for context in contexts]
    limit = default if max_new_tokens is None else max_new_tokens
    if not 1 <= limit <= POSITIONS:
        raise UsageError(f"max_new_tokens {limit}: at least 1, and at most {POSITIONS:,}")
    return [limit] * len(contexts)
