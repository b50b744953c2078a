"""Pruning inside a vision encoder, as a manifest records it: rule, layers, schedule, and the work that is left."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Annotated, Literal

from pydantic import Field, model_validator

from catp.runtime.bundle.strict import Strict
from catp.runtime.errors import UsageError
from catp.runtime.limits import COUNT, ENCODER_LAYERS, ENCODER_PATCHES, ENCODER_SIDE, ENCODER_WIDTH, PATH_CHARACTERS

Rule = Literal["madtp", "self-cls", "cls", "tome", "pitome", "norm", "taught", "random"]
"""How image tokens are scored."""

PAIRS: tuple[Rule, ...] = ("tome", "pitome")
"""Rules that say which token merges into which: at most every second one of a layer merges."""

Merge = Literal["one", "nearest", "drop"]
"""The fate of tokens that are not kept: averaged into one more, each into the nearest kept one, or nothing."""

Form = Literal["schedule", "dynamic"]
"""Whether the caller says how many tokens each layer keeps, or the graph counts for itself, from a temperature."""

LOWEST, HIGHEST = 1e-6, 1e6
"""Temperatures, of a dynamic form that prunes; float32 holds them and what is divided by them."""

CAN_SKIP = 2
"""A layer that prunes leaves out at least so many tokens: one would be replaced by itself."""


def positions_of(layer: int) -> str:
    """The output with the patches that a layer leaves, among the diagnostics; the last one's are `kept_positions`."""
    return f"positions.{layer}"


def merged_into(layer: int) -> str:
    """The output with the patch of which each token that came into a layer is a part after it, likewise."""
    return f"merged_into.{layer}"


MOST_NAMED = 24
"""Counts of a schedule that a message repeats."""


def left_by(place: int, added: int) -> str:
    """The name of a dimension: the tokens that the layer of that count of a schedule leaves, without CLS.

    Args:
        place: of the count, from 0; -1: the last one, whose tokens leave the encoder.
        added: tokens that a layer adds to those that it keeps.
    """
    return f"kept_tokens[{place}] + {added}" if added else f"kept_tokens[{place}]"


class EncoderSizes(Strict):
    """Sizes of a vision transformer that decide its work."""

    patches: int = Field(ge=1, le=ENCODER_PATCHES, description="of an image")
    patch_values: int = Field(
        ge=1, le=3 * ENCODER_SIDE**2, description="numbers that a patch is made from: channels x height x width"
    )
    layers: int = Field(ge=1, le=ENCODER_LAYERS)
    width: int = Field(ge=1, le=ENCODER_WIDTH)
    feed_forward: int = Field(ge=1, le=16 * ENCODER_WIDTH)

    def layer_gflops(self, tokens: int, left: int) -> float:
        """Work of one layer, in GFLOPs: a multiplication and an addition are two.

        Matrix products alone: projections and attention of `tokens`, CLS among them, and the MLP of the `left` ones.
        """
        attention = 4 * tokens * self.width**2 + 2 * tokens**2 * self.width
        return 2e-9 * (attention + 2 * left * self.width * self.feed_forward)

    @property
    def patch_gflops(self) -> float:
        """Work of the patch embedding."""
        return 2e-9 * self.patches * self.patch_values * self.width


Share = Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)]
Kept = Annotated[int, Field(ge=0, le=ENCODER_PATCHES)]


class ScheduleConfirmation(Strict):
    """The cost of a schedule on questions that it was not chosen on."""

    data: str = Field(max_length=PATH_CHARACTERS)
    metric: str = Field(max_length=PATH_CHARACTERS)
    seed: int = Field(ge=0, le=COUNT)
    questions: int = Field(ge=1, le=COUNT)
    before: Share = Field(description="accuracy of the dense encoder, of 1")
    after: Share
    difference: Share = Field(description="mean of the paired differences; negative: accuracy was lost")
    interval_95: tuple[Share, Share] = Field(description="of the difference")
    ratios: tuple[Share, Share] | None = Field(
        default=None,
        description="of query tokens left out, with the dense encoder and with this schedule; none: no ratio was given",
    )


class TaughtSpec(Strict):
    """How a scorer was taught: patches hidden from the Q-Former, and how well their tokens tell what that changes."""

    data: str = Field(max_length=PATH_CHARACTERS)
    pictures: int = Field(ge=1, le=COUNT)
    toggles: int = Field(ge=1, le=COUNT, description="patches hidden in each picture")
    seed: int = Field(ge=0, le=COUNT)
    explained: tuple[Share, ...] = Field(
        max_length=ENCODER_LAYERS, description="by layer, share of the variance on pictures that were held back"
    )


class EncoderPruningSpec(Strict):
    """Which image tokens the layers of a vision encoder keep."""

    rule: Rule
    merge: Merge
    form: Form
    layers: tuple[Kept, ...] = Field(
        min_length=1, max_length=ENCODER_LAYERS, description="those that prune, ascending, from 0"
    )
    kept_tokens: tuple[Kept, ...] | None = Field(
        default=None, max_length=ENCODER_LAYERS, description="default schedule: a count for each of them"
    )
    temperature: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="default of the dynamic form"
    )
    source: str = Field(max_length=PATH_CHARACTERS, description="where the schedule or the temperature comes from")
    confirmed: ScheduleConfirmation | None = None
    taught: TaughtSpec | None = Field(default=None, description="of the rule of that name")
    sizes: EncoderSizes
    gflops_dense: float = Field(
        gt=0, allow_inf_nan=False, description="of the encoder for one image, a multiply-add being two"
    )
    gflops_pruned: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="with the default schedule; none in the dynamic form"
    )

    @model_validator(mode="after")
    def _consistent(self) -> EncoderPruningSpec:
        if (
            list(self.layers) != sorted(set(self.layers))
            or not 0 <= self.layers[0] <= self.layers[-1] < self.sizes.layers
        ):
            raise ValueError(f"layers: {list(self.layers)}, of an encoder with layers 0 to {self.sizes.layers - 1}")
        if (self.kept_tokens is None) != (self.form == "dynamic") or (self.temperature is None) == (
            self.form == "dynamic"
        ):
            raise ValueError(
                f"the {self.form} form has a {'schedule' if self.form == 'schedule' else 'temperature'} alone"
            )
        if self.form == "dynamic" and self.rule != "madtp":
            raise ValueError(f"rule: {self.rule} has no dynamic form, madtp has")
        if not math.isclose(self.gflops_dense, dense_gflops(self.sizes), rel_tol=1e-6):
            raise ValueError("gflops_dense: not the work of an encoder of these sizes")
        if self.kept_tokens is not None:
            try:
                self.check(self.kept_tokens)
            except UsageError as error:
                raise ValueError(str(error)) from None
        return self

    @property
    def added(self) -> int:
        """Tokens that a layer which prunes adds to those that it keeps."""
        return 1 if self.merge == "one" else 0

    def least_kept(self, tokens: int) -> int:
        """The fewest of so many tokens that a layer can keep."""
        return tokens - tokens // 2 if self.rule in PAIRS else 1

    def bounds(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The smallest and the largest schedule that the layers can keep, one after the other."""
        least, most = [], []
        fewest = tokens = self.sizes.patches
        for later in reversed(range(len(self.layers))):
            # What a layer leaves must be enough for every later one to leave something out.
            end = 2 if self.rule in PAIRS else 1
            least.append(max(self.least_kept(fewest), end + later * (CAN_SKIP - self.added)))
            most.append(tokens - CAN_SKIP)
            fewest, tokens = least[-1] + self.added, most[-1] + self.added
        return tuple(least), tuple(most)

    def check(self, kept_tokens: Sequence[int]) -> tuple[int, ...]:
        """The schedule, if it is one.

        Raises:
            UsageError: it has another number of counts, or one that its layer can't keep; the message names the layer.
        """
        given = ",".join(map(str, kept_tokens[:MOST_NAMED])) + (",..." if len(kept_tokens) > MOST_NAMED else "")
        if len(kept_tokens) != len(self.layers):
            raise UsageError(
                f"encoder schedule {given}: {len(kept_tokens)} counts; this encoder prunes in {len(self.layers)} "
                f"layers ({', '.join(map(str, self.layers))}), give one for each"
            )
        tokens = self.sizes.patches
        for layer, kept in zip(self.layers, kept_tokens):
            least = self.least_kept(tokens)
            if isinstance(kept, bool) or not isinstance(kept, Integral) or not least <= kept <= tokens - CAN_SKIP:
                raise UsageError(
                    f"encoder schedule {given}: layer {layer} gets {tokens} image tokens and can keep {least} to "
                    f"{tokens - CAN_SKIP} of them, not {kept}"
                )
            tokens = kept + self.added
        return tuple(int(kept) for kept in kept_tokens)

    def tokens_by_layer(self, kept_tokens: Sequence[int]) -> list[tuple[int, int]]:
        """For every layer of the encoder, tokens that come in and that its MLP reads, CLS among them.

        Args:
            kept_tokens: a count for each layer that prunes; N, all that come in, where it prunes nothing after all.
        """
        kept_by_layer = dict(zip(self.layers, kept_tokens))
        tokens, rows = self.sizes.patches, []
        for layer in range(self.sizes.layers):
            left = tokens
            if layer in kept_by_layer and kept_by_layer[layer] < tokens:
                left = kept_by_layer[layer] + self.added
            rows.append((tokens + 1, left + 1))
            tokens = left
        return rows

    def gflops(self, kept_tokens: Sequence[int]) -> float:
        """Work of the encoder for one image under a schedule, without that of the scores."""
        rows = self.tokens_by_layer(kept_tokens)
        return self.sizes.patch_gflops + sum(self.sizes.layer_gflops(*row) for row in rows)


class QuestionPruningSpec(Strict):
    """How many tokens of a question, or of a text that is scored, each layer of a text encoder keeps; the others become
    one more."""

    rule: Rule
    form: Form
    fraction: float | None = Field(
        default=None, gt=0, lt=1, description="of a text's tokens, rounded up, by every layer; three decimals"
    )
    temperature: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="default of the dynamic form"
    )
    source: str = Field(max_length=PATH_CHARACTERS, description="where the fraction or the temperature comes from")

    @model_validator(mode="after")
    def _consistent(self) -> QuestionPruningSpec:
        if (self.fraction is None) != (self.form == "dynamic") or (self.temperature is None) == (
            self.form == "dynamic"
        ):
            raise ValueError(
                f"the {self.form} form has a {'fraction' if self.form == 'schedule' else 'temperature'} alone"
            )
        if self.form == "dynamic" and self.rule != "madtp":
            raise ValueError(f"rule: {self.rule} has no dynamic form, madtp has")
        return self

    def describe(self) -> str:
        """For people, one line."""
        if self.fraction is None:
            return f"{self.rule} in every layer; dynamic form, temperature {self.temperature:g}, from {self.source}"
        return (
            f"{self.rule} in every layer keeps {self.fraction:.1%} of a text's tokens, the others into one more; from "
            f"{self.source}"
        )

    @property
    def thousandths(self) -> int | None:
        """The fraction as a whole number, so that rounding up is the same everywhere."""
        return None if self.fraction is None else round(1000 * self.fraction)


def text_tokens(tokens: int, layers: int, fixed: int, thousandths: int) -> list[tuple[int, int]]:
    """For every layer of a text encoder that prunes, tokens of a text that come in and that are left.

    Args:
        tokens: of the text.
        fixed: how many of them are never pruned: the first, of a causal encoder the one that ends the text as well.
        thousandths: of the others that each layer keeps, rounded up; one more is what the rest of them become.
    """
    rows = []
    for _ in range(layers):
        others = max(tokens - fixed, 0)
        kept = max(1, -(-others * thousandths // 1000))
        left = tokens if kept > others - CAN_SKIP else fixed + kept + 1
        rows.append((tokens, left))
        tokens = left
    return rows


def dense_gflops(sizes: EncoderSizes) -> float:
    """Work of the encoder for one image, with every token in every layer."""
    tokens = sizes.patches + 1
    return sizes.patch_gflops + sizes.layers * sizes.layer_gflops(tokens, tokens)
