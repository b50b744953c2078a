"""Settings that decide which tokens are chosen, under the names that Hugging Face gives them."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from catp.runtime.errors import UsageError
from catp.runtime.limits import BEAMS, POSITIONS, STOP_STRINGS, TEMPLATE_CHARACTERS


class GenerationSettings(BaseModel):
    """Settings of `generate()`; the defaults are transformers' own, so greedy.

    A bundle's manifest records those of its checkpoint. Each means what the setting of that name does in
    https://huggingface.co/docs/transformers/main_classes/text_generation. Stop strings end an answer as there, and are
    left out of its text.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    do_sample: bool = False
    num_beams: int = Field(default=1, ge=1, le=BEAMS)
    length_penalty: float = Field(default=1.0, allow_inf_nan=False, description="exponent of a beam's length")
    early_stopping: bool | Literal["never"] = Field(default=False, description="of beam search")
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    top_k: int = Field(default=50, ge=0, description="0: all tokens")
    top_p: float = Field(default=1.0, ge=0, le=1, description="0: the likeliest token, whatever is drawn")
    seed: int | None = Field(default=None, ge=0, description="of sampling; None: another one every time")
    repetition_penalty: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    no_repeat_ngram_size: int = Field(default=0, ge=0, le=POSITIONS)
    min_new_tokens: int = Field(default=0, ge=0, le=POSITIONS)
    min_length: int = Field(
        default=0, ge=0, le=POSITIONS, description="as max_length; an older way to say min_new_tokens"
    )
    max_length: int | None = Field(
        default=None,
        ge=1,
        le=POSITIONS,
        description="tokens before the answer included, those of the image too; max_new_tokens comes before it",
    )
    stop_strings: tuple[str, ...] = Field(default=(), max_length=STOP_STRINGS)

    @field_validator("early_stopping", mode="before")
    @classmethod
    def _no_numbers(cls, value: Any) -> Any:
        # Older configuration files write 0 and 1.
        return bool(value) if isinstance(value, int) else value

    @field_validator("stop_strings", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _stop_strings_say_something(self) -> GenerationSettings:
        if "" in self.stop_strings:
            raise ValueError("stop_strings: one is empty and would end every answer before it begins")
        if any("\ud800" <= character <= "\udfff" for string in self.stop_strings for character in string):
            raise ValueError("stop_strings: one is not valid Unicode")
        if sum(map(len, self.stop_strings)) > TEMPLATE_CHARACTERS:
            raise ValueError(f"stop_strings: at most {TEMPLATE_CHARACTERS:,} characters together")
        return self

    @property
    def is_plain_greedy(self) -> bool:
        """Whether every token is the one with the highest logit, which the graph itself finds."""
        return not (self.do_sample or self.num_beams > 1 or self.changes_scores)

    @property
    def changes_scores(self) -> bool:
        """Whether a token's score depends on the tokens before it in other ways than the model's."""
        lengths = self.min_new_tokens or self.min_length
        return bool(self.repetition_penalty != 1 or self.no_repeat_ngram_size or lengths)

    def describe(self) -> str:
        """For people: "greedy", or what is not as usual, such as "num_beams 5, length_penalty 0.0"."""
        unusual = [f"{name} {value}" for name, value in self if value != getattr(GREEDY, name)]
        return ", ".join(unusual) or "greedy"

    def override(self, **changes: Any) -> GenerationSettings:
        """These settings with others; None leaves one as it is.

        Raises:
            UsageError: one is unknown or out of range.
        """
        given = {name: value for name, value in changes.items() if value is not None}
        try:
            return GenerationSettings.model_validate({**self.model_dump(), **given})
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0]) if first["loc"] else ""
            if first["type"] == "extra_forbidden":
                accepted = ", ".join(sorted([*GenerationSettings.model_fields, "max_new_tokens"]))
                raise UsageError(f"setting {name!r}: unknown; accepted: {accepted}") from None
            what = f"{name} {given.get(name)!r}: " if name else ""
            raise UsageError(what + first["msg"].removeprefix("Value error, ")) from None

    def asked_for(self, **changes: Any) -> GenerationSettings:
        """As `override`, for what somebody asks for: what would change nothing is refused.

        Raises:
            UsageError: also for a temperature without sampling, or a length penalty without beams.
        """
        result = self.override(**changes)
        for name, value in changes.items():
            if value is not None and name in _ONLY_DRAWN and not result.do_sample:
                raise UsageError(f"{name} {value}: it is of use where tokens are drawn; give do_sample (--sample) too")
            if value is not None and name in _ONLY_SEARCHED and result.num_beams == 1:
                raise UsageError(f"{name} {value}: it is of use in a beam search; give num_beams (--num-beams) too")
        return result


_ONLY_DRAWN = ("temperature", "top_k", "top_p", "seed")
_ONLY_SEARCHED = ("length_penalty", "early_stopping")


class Overrides(TypedDict, total=False):
    """Settings by keyword; those left out, or None, are the bundle's."""

    do_sample: bool | None
    num_beams: int | None
    length_penalty: float | None
    early_stopping: bool | Literal["never"] | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    seed: int | None
    repetition_penalty: float | None
    no_repeat_ngram_size: int | None
    min_new_tokens: int | None
    min_length: int | None
    max_length: int | None
    stop_strings: str | tuple[str, ...] | list[str] | None


GREEDY = GenerationSettings()
