"""Outputs of a graph, brought to the host and compared with the manifest."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from catp.runtime.errors import GraphError
from catp.runtime.language_models.base import Output
from catp.runtime.providers.base import DeviceTensor


def read_output(
    graph: str, outputs: Mapping[str, DeviceTensor], output: Output, rows: int, vocabulary: int
) -> np.ndarray:
    """next_token int64 [R] or logits [R, V].

    Raises:
        GraphError: it has another shape.
    """
    array = outputs[output].numpy()
    promised = (rows,) if output == "next_token" else (rows, vocabulary)
    if array.shape != promised:
        raise GraphError(graph, f"{output} is {list(array.shape)} where its manifest promises {list(promised)}")
    return array
