"""Milliseconds inside the graphs, by kind of operator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

Kind = Literal["products", "attention", "activations", "normalisation", "everything else"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_OPERATORS: Mapping[Kind, tuple[str, ...]] = {
    "products": ("MatMul", "Gemm", "QGemm", "NBits", "Conv"),  # in any of the names that fusions give them
    "attention": ("Attention", "Softmax"),
    "activations": ("Gelu", "Relu", "Sigmoid", "Silu"),
    "normalisation": ("LayerNormalization",),
}


class KernelTimes(BaseModel):
    """Times of one answer to one image; decode is all its steps together."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    subject: str
    ratio: float
    encoder_flops: float | None = Field(default=None, description="share of the dense encoder's work, if asked for")
    stages: dict[str, dict[Kind, float]] = Field(description="milliseconds inside operators, median over the answers")
    answer_ms: float = Field(description="the whole answer, from pictures to tokens, median over the same answers")
    operators: dict[str, dict[str, float]] = Field(description="the same by operator, as ONNX Runtime names it")

    def total(self, kind: Kind) -> float:
        """Milliseconds of all stages."""
        return sum(stage[kind] for stage in self.stages.values())


def kind_of(operator: str) -> Kind:
    return next((kind for kind, parts in _OPERATORS.items() if any(p in operator for p in parts)), "everything else")
