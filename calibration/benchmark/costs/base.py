"""The cost of one stage: operations, bytes, and the workload that they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from catp.runtime.bundle.manifest import GraphSpec, Precision

WEIGHT_BYTES: Mapping[Precision, int] = {"fp32": 4, "fp16": 2, "bf16": 2}
"""Of a weight that was not quantised."""


class StageCost(BaseModel):
    """One run of one stage for a whole batch; of decode one step, the mean over the steps of an answer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    flops: int = Field(description="floating-point operations of matrix products")
    bytes: int = Field(description="bytes that must be moved")
    integer: bool = Field(default=False, description="whether its products are of 8-bit integers, on a CPU")

    def fastest_ms(self, flops_per_second: float, bytes_per_second: float) -> float:
        """The roofline: no faster than its arithmetic, and no faster than its traffic."""
        return 1e3 * max(self.flops / flops_per_second, self.bytes / bytes_per_second)


@dataclass(frozen=True)
class Workload:
    """The workload of a model."""

    batch: int  # requests, each of which may have several pictures
    num_kept: int  # that the language model reads: of a video those of all frames
    prompt_tokens: int
    new_tokens: int
    texts: int = 1  # that each picture is compared with, where texts are scored


@dataclass(frozen=True)
class LanguageCost:
    """The cost of a language model."""

    stages: dict[str, StageCost]  # prefill, and decode where more than one token is generated
    cache_bytes: int  # when the answer is complete


def in_integers(graph: GraphSpec) -> bool:
    """Whether matrices are multiplied in 8-bit integers; INT4 weights are, by what they are multiplied with."""
    return graph.quantization is not None and graph.quantization.purpose == "cpu"


def weight_bytes(graph: GraphSpec) -> int:
    """Bytes of a graph that reads all its weights."""
    return (graph.external_data or graph.file).size


def item_size(graph: GraphSpec, name: str) -> int:
    """Bytes of an element of an input or output."""
    dtype = next(tensor.dtype for tensor in (*graph.inputs, *graph.outputs) if tensor.name == name)
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize  # which numpy alone does not know
