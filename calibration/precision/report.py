"""The report of a calibration, as JSON."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from catp.calibration.precision.search.sensitivity import LayerError
from catp.runtime.bundle.manifest import AccuracyChange, CalibrationSpec, ModelSpec, Quantization
from catp.runtime.bundle.strict import Strict


class _Record(Strict):
    """A record that may hold infinite errors, which JSON has no numbers for: they are "Infinity"."""

    model_config = ConfigDict(ser_json_inf_nan="strings")


class Trial(_Record):
    """A choice of layers that stay in floating point, and what it costs on the searching half of the images."""

    kept: tuple[str, ...] = Field(description="layers, as GRAPH: LAYER")
    accuracy: tuple[AccuracyChange, ...]
    kept_overlap: float
    fits: bool = Field(description="into the budget")


class GraphSize(_Record):
    """Bytes on disk, and how a graph was quantised (None: it was not)."""

    before: int
    after: int
    quantization: Quantization | None


class PrecisionReport(_Record):
    """The whole of it; what is None was not reached."""

    schema_version: Literal[1] = 1
    model: ModelSpec
    max_accuracy_drop: float
    min_kept_overlap: float
    errors: tuple[LayerError, ...] = Field(
        description="of single layers, the largest first, infinite where an output is no number; empty: not measured"
    )
    trials: tuple[Trial, ...]
    graphs: dict[str, GraphSize] | None = None
    calibration: CalibrationSpec | None = Field(default=None, description="cost on the confirming half of the images")
    confirmed: bool = Field(default=False, description="within the budget, and more than too few pictures can say")

    @property
    def kept(self) -> tuple[str, ...]:
        """Layers that stay in floating point, as GRAPH: LAYER, in the cheapest trial that fits, if one does."""
        fitting = [trial.kept for trial in self.trials if trial.fits]
        return min(fitting, key=len, default=())
