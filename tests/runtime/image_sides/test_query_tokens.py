"""Votes of frames, joined to those of videos."""

from __future__ import annotations

import numpy as np

from catp.runtime.bundle.manifest import LAYER_POINTS
from catp.runtime.image_sides.query_tokens import Votes


def test_points_of_each_layer_go_along_frame_by_frame() -> None:
    """Two videos of two frames, of three query tokens each, which two layers give points."""
    rng = np.random.default_rng(0)
    embeds, scores, points = rng.random((4, 3, 5)), rng.random((4, 3)), rng.random((4, 2, 3))
    found = Votes(embeds, {"token_scores": scores, LAYER_POINTS: points, "query_attention": embeds}).joined(2)
    assert sorted(found.outputs) == [LAYER_POINTS, "token_scores"] and found.frames == 2
    for video in range(2):
        first, second = 2 * video, 2 * video + 1
        np.testing.assert_array_equal(found.scores[video], [*scores[first], *scores[second]])
        np.testing.assert_array_equal(found.embeds[video], [*embeds[first], *embeds[second]])
        for layer in range(2):
            wanted = [*points[first, layer], *points[second, layer]]
            np.testing.assert_array_equal(found.outputs[LAYER_POINTS][video, layer], wanted)
