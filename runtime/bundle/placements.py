"""Placements: which provider runs each graph of a bundle on one machine, as was measured there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from catp.runtime.bundle.strict import Strict
from catp.runtime.limits import COUNT


class Place(Strict):
    """The runner of one graph."""

    provider: Literal["cpu", "openvino"]
    device: str | None = Field(default=None, max_length=20, description="of OpenVINO; null for cpu")
    precision: Literal["f32", "bf16", "f16"] | None = Field(default=None, description="likewise, what it multiplies in")

    @property
    def label(self) -> str:
        """For people: "cpu", or "openvino (GPU, f16)"."""
        return self.provider if self.device is None else f"{self.provider} ({self.device}, {self.precision})"


ON_CPU = Place(provider="cpu")
"""ONNX Runtime, where nothing else is known to be faster."""


class Placement(Strict):
    """The choice for one machine."""

    cpu: str = Field(max_length=200, description="model of its processor")
    cpus: int = Field(ge=1, le=COUNT, description="logical ones that a process could use")
    versions: dict[str, str] = Field(description="of the libraries that were measured")
    graphs: dict[str, Place] = Field(description="by name; those that are left out run by cpu")

    def holds_for(self, cpu: str, cpus: int) -> bool:
        """Whether it was measured on such a machine."""
        return (self.cpu, self.cpus) == (cpu, cpus)


def find_placement(placements: Sequence[Placement], cpu: str, cpus: int) -> Placement | None:
    """The one for a machine; None where there is none."""
    return next((placement for placement in placements if placement.holds_for(cpu, cpus)), None)
