"""Arguments of a run: a bundle, and how it answers, as `--model_args` of the harness has them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from catp.runtime.bundle.manifest import Positions
from catp.runtime.errors import UsageError
from catp.runtime.image_sides.pruned_encoder import EncoderWish

PLACE = "{text}"
"""Where a template has the text of a task."""


class Arguments(BaseModel):
    """All that `--model_args` may say. Settings of generation that are left out are the task's, others the bundle's."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True, protected_namespaces=())

    bundle: str
    provider: str = "cpu"
    engines: str | None = None
    threads: int | None = None

    ratio: float | None = None
    keep_mass: float | None = None
    positions: Positions | None = None
    encoder_flops: float | None = None
    encoder_temperature: float | None = None

    prompt_template: str | None = None  # None: the family's own
    first_line: bool = False  # of the task's text; instructions stand on lines of their own

    seed: int | None = Field(default=None, ge=0)
    max_new_tokens: int | None = Field(default=None, ge=1)
    min_new_tokens: int | None = None
    num_beams: int | None = None
    length_penalty: float | None = None
    early_stopping: bool | Literal["never"] | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None

    @property
    def encoder(self) -> EncoderWish:
        """The wish of what a vision encoder that prunes keeps."""
        return EncoderWish(flops=self.encoder_flops, temperature=self.encoder_temperature)

    @property
    def generation(self) -> dict[str, Any]:
        """Settings of generation that were given, by name."""
        return {name: getattr(self, name) for name in GENERATION if getattr(self, name) is not None}


GENERATION = (
    "seed",
    "max_new_tokens",
    "min_new_tokens",
    "num_beams",
    "length_penalty",
    "early_stopping",
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "repetition_penalty",
    "no_repeat_ngram_size",
)
"""Arguments that go before what a task says of generation."""


def read_arguments(given: Mapping[str, Any]) -> Arguments:
    """The arguments by name, as the harness has split them: texts, numbers, true and false.

    Raises:
        UsageError: one is missing, unknown or out of range.
    """
    if "bundle" not in given:
        raise UsageError("model argument bundle: missing; give --model_args bundle=FOLDER, one that catp-export wrote")
    unquoted = {name: _unquoted(value) for name, value in given.items()}
    try:
        arguments = Arguments.model_validate(unquoted)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        if first["type"] == "extra_forbidden":
            accepted = ", ".join(Arguments.model_fields)
            raise UsageError(f"model argument {name}: unknown; accepted: {accepted}") from None
        raise UsageError(f"model argument {name} {given[name]!r}: {first['msg']}") from None
    _check_template(arguments.prompt_template)
    return arguments


def _unquoted(value: Any) -> Any:
    """A text without the quotes that keep its commas from ending it; the harness leaves them in."""
    if isinstance(value, str) and len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
        return value[1:-1]
    return value


def _check_template(template: str | None) -> None:
    places = re.findall(r"\{\w*\}", template or "")
    if places not in ([], [PLACE]):
        raise UsageError(
            f"model argument prompt_template {template!r}: it has {', '.join(places)}; give {PLACE} once, where the "
            "task's text stands, or not at all"
        )
