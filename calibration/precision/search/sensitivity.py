"""How much one layer alone, quantised, changes what its graph outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from catp.calibration.precision.graphs.graph import FloatGraph, serialized
from catp.calibration.precision.ranges.observation import Inputs
from catp.runtime.bundle.chains import made_from
from catp.runtime.bundle.manifest import Purpose
from catp.runtime.errors import CatpError
from catp.runtime.providers.onnx_runtime import OrtProvider

COMPARED = {
    "vision_encoder": ("image_embeds",),
    "qformer_voting": ("kept_embeds", "token_scores"),
    "language_model": ("logits",),
    "text_encoder": ("cross_key_values.",),
    "text_decoder": ("logits",),
    "question_encoder": ("cross_key_values.",),
    "answer_decoder": ("logits",),
    "image_keys": ("cross_key_values.",),
    "caption_decoder": ("logits",),
    "statement_encoder": ("truth_logits",),
    "text_embedding": ("text_embeds",),
    "image_text_matching": ("match_logits",),
}
"""Outputs that a change is looked for in; a name that ends in a dot stands for all that begin so."""


@dataclass(frozen=True)
class LayerError:
    """The effect of quantising one layer."""

    graph: str
    layer: str
    error: float  # of the worst output, see relative_change
    megabytes: float  # of the weight in floating point

    @property
    def key(self) -> tuple[str, str]:
        return self.graph, self.layer


def layer_errors(
    graph: FloatGraph,
    fragments: Mapping[str, onnx.GraphProto],
    purpose: Purpose,
    calls: Sequence[Inputs],
    advance: Callable[[], None] = lambda: None,
) -> Iterator[LayerError]:
    """For every layer that has a fragment, with all others in floating point.

    Args:
        calls: what the graph is given, with all query tokens kept, so that outputs stay comparable.

    Raises:
        CatpError: in floating point, an output is no number, or infinite: nothing can be compared with it.
    """
    wanted = _outputs(graph, {}, purpose, calls)
    if not all(np.isfinite(output).all() for output in wanted):
        raise CatpError(
            f"{graph.name}: in floating point it outputs what is no number, or infinite, so an error can't be "
            "measured; check that catp-run gives sensible answers with this bundle (fp16 overflows where fp32 does not)"
        )
    sizes = {layer.name: layer.nbytes for layer in graph.layers}
    for name, fragment in fragments.items():
        found = _outputs(graph, {name: fragment}, purpose, calls)
        error = max(relative_change(a, b) for a, b in zip(found, wanted))
        advance()
        yield LayerError(graph.name, name, error, sizes[name] / 1e6)


def relative_change(found: np.ndarray, wanted: np.ndarray) -> float:
    """Root mean square of the change, relative to the standard deviation of `wanted`.

    Infinite where a number became none, or infinite: no error is worse, and none sorts before it.
    """
    found, wanted = found.astype(np.float64), wanted.astype(np.float64)
    if not np.isfinite(found).all():
        return math.inf
    return float(np.sqrt(np.mean((found - wanted) ** 2)) / max(wanted.std(), 1e-30))


def _outputs(
    graph: FloatGraph, fragments: Mapping[str, onnx.GraphProto], purpose: Purpose, calls: Sequence[Inputs]
) -> list[np.ndarray]:
    """Each compared output, of all calls together."""
    engine = OrtProvider("cpu").engine_in_memory(serialized(graph.exchanged(fragments)), graph.folder, purpose)
    # An encoder that counts for itself would output other numbers of tokens; at temperature 0 it keeps all of them.
    whole = [
        {name: np.zeros_like(array) if name == "encoder_temperature" else array for name, array in call.items()}
        for call in calls
    ]
    runs = [engine.bind(call).run() for call in whole]
    compared = COMPARED[made_from(graph.name)]
    names = [name for name in runs[0] if any(name == c or (c.endswith(".") and name.startswith(c)) for c in compared)]
    return [np.concatenate([run[name].numpy().ravel() for run in runs]) for name in names]
