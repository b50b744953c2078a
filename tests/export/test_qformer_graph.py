"""The Q-Former graph of a checkpoint unlike the demo: 24 queries, five layers, other widths and head counts."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from PIL import Image
from references import count_points

from catp.export.checkpoint import load_checkpoint
from catp.export.reference import Reference, rank_points


@pytest.fixture(scope="module")
def session(odd_bundle: Path) -> ort.InferenceSession:
    return ort.InferenceSession(odd_bundle / "qformer_voting.onnx")


@pytest.fixture(scope="module")
def reference(odd_checkpoint: Path) -> Reference:
    return Reference(load_checkpoint(str(odd_checkpoint)))


def random_image_embeds(reference: Reference, batch: int) -> np.ndarray:
    rng = np.random.default_rng(5)
    images = [Image.fromarray(rng.integers(0, 256, (80, 80, 3), np.uint8)) for _ in range(batch)]
    return reference.image_embeds(reference.pixel_values(images)).numpy()


def test_scores_are_the_counted_rank_points(session: ort.InferenceSession, reference: Reference) -> None:
    image_embeds = random_image_embeds(reference, 3)
    embeds, maps = reference.query_embeds(torch.from_numpy(image_embeds))
    assert [m.shape for m in maps] == [(3, 6, 24, 50)] * 3  # three cross-attention layers of five
    expected, slack = count_points(maps), rank_points(maps).slack
    for kept in (1, 7, 17, 24):
        feeds = {"image_embeds": image_embeds, "num_kept": np.array([kept])}
        indices, kept_embeds, scores = session.run(["kept_indices", "kept_embeds", "token_scores"], feeds)
        assert scores.dtype == np.float32 and scores.shape == (3, 24)
        assert (np.abs(scores - expected) <= slack).all()
        assert np.ptp(scores, axis=1).min() > 100 * slack.max()  # the votes differ by far more than rounding could move
        top = np.sort(np.argsort(-scores, axis=1, kind="stable")[:, :kept], axis=1)
        assert indices.dtype == np.int64 and (indices == top).all()
        wanted = np.take_along_axis(embeds.numpy(), indices[:, :, None], axis=1)
        assert np.abs(kept_embeds - wanted).max() <= 1e-4 * np.abs(wanted).max()


def test_different_images_get_different_votes(session: ort.InferenceSession, reference: Reference) -> None:
    feeds = {"image_embeds": random_image_embeds(reference, 4), "num_kept": np.array([8])}
    (scores,) = session.run(["token_scores"], feeds)
    assert len({tuple(row) for row in scores}) == 4


def test_rows_do_not_depend_on_the_batch(session: ort.InferenceSession, reference: Reference) -> None:
    embeds = random_image_embeds(reference, 4)
    together = session.run(["kept_indices"], {"image_embeds": embeds, "num_kept": np.array([8])})[0]
    for row in range(4):
        alone = session.run(["kept_indices"], {"image_embeds": embeds[row : row + 1], "num_kept": np.array([8])})[0]
        assert (alone[0] == together[row]).all()
