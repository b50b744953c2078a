"""Wishes of what a vision encoder keeps: a schedule, a share or a temperature, as its graph takes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from catp.runtime.bundle.encoder_pruning import HIGHEST, LOWEST, EncoderPruningSpec
from catp.runtime.bundle.encoder_schedules import even_schedule
from catp.runtime.errors import UsageError


@dataclass(frozen=True)
class EncoderWish:
    """The tokens that an encoder shall keep, in one of three ways; in none of them: the bundle's default."""

    kept_tokens: tuple[int, ...] | None = None  # a count for each layer that prunes
    flops: float | None = None  # share of the dense encoder's work, every layer keeping the same fraction
    temperature: float | None = None  # of the dynamic form; 0 prunes nothing

    def inputs(self, spec: EncoderPruningSpec | None, family: str) -> Mapping[str, np.ndarray]:
        """The graph's inputs beside the pixels, by name; none where the encoder is dense.

        Args:
            family: for messages.

        Raises:
            UsageError: this encoder takes nothing of that kind, or not that value.
        """
        given = [name for name in ("kept_tokens", "flops", "temperature") if getattr(self, name) is not None]
        if len(given) > 1:
            raise UsageError(f"encoder {' and '.join(given)}: give one of them")
        if spec is None:
            if given:
                raise UsageError(
                    f"encoder {given[0]}: the vision encoder of this bundle ({family}) prunes nothing; export it with "
                    "--encoder-flops"
                )
            return {}
        if spec.form == "dynamic":
            if self.kept_tokens is not None or self.flops is not None:
                raise UsageError(
                    f"encoder {given[0]}: this bundle's encoder counts tokens by its temperature (dynamic form); give "
                    "an encoder temperature, or export with --encoder-form schedule"
                )
            temperature = spec.temperature if self.temperature is None else self.temperature
            if temperature is None or not (temperature == 0 or LOWEST <= temperature <= HIGHEST):
                raise UsageError(
                    f"encoder temperature {temperature}: give a number from {LOWEST:g} to {HIGHEST:g}, or 0, which "
                    "prunes nothing"
                )
            return {"encoder_temperature": np.array([temperature], np.float32)}
        if self.temperature is not None:
            raise UsageError(
                f"encoder temperature {self.temperature:g}: this bundle's encoder keeps as many tokens as its schedule "
                "says; give a share of its work or a schedule, or export with --encoder-form dynamic"
            )
        return {"kept_tokens": np.array(self.schedule(spec), np.int64)}

    def schedule(self, spec: EncoderPruningSpec) -> tuple[int, ...]:
        """The count of each layer of an encoder in the schedule form.

        Raises:
            UsageError: the layers can't keep so many.
        """
        if self.flops is not None:
            return even_schedule(spec, self.flops)
        kept = spec.kept_tokens if self.kept_tokens is None else self.kept_tokens
        assert kept is not None, "the manifest was checked"
        return spec.check(kept)


DEFAULT = EncoderWish()
"""The bundle's own."""
