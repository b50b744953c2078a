"""The Q-Former graph of the demo, and of a checkpoint unlike it: 24 queries, five layers, other widths and heads."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from PIL import Image
from references import count_points, cover_greedily, pivoted_lengths, received

from catp.export.checkpoints.loading import load_checkpoint
from catp.export.demo import CHECKPOINT
from catp.export.verification.reference import Reference, rank_points
from catp.export.voting.base import Evidence
from catp.runtime.bundle.manifest import LAYER_POINTS, QUERY_ATTENTION, scores_of
from catp.runtime.pruning import top_indices


@pytest.fixture(scope="module")
def session(odd_bundle: Path) -> ort.InferenceSession:
    return ort.InferenceSession(odd_bundle / "qformer_voting.onnx")


@pytest.fixture(scope="module")
def reference(odd_checkpoint: Path) -> Reference:
    return Reference(load_checkpoint(str(odd_checkpoint)))


@pytest.fixture(scope="module", params=[pytest.param("odd", marks=pytest.mark.heavy), "demo"])
def compared(request: pytest.FixtureRequest) -> tuple[ort.InferenceSession, Reference]:
    """A bundle with diagnostics, and its checkpoint."""
    bundle = request.getfixturevalue({"odd": "odd_diagnostics_bundle", "demo": "diagnostics_bundle"}[request.param])
    checkpoint = request.getfixturevalue("odd_checkpoint") if request.param == "odd" else CHECKPOINT
    return ort.InferenceSession(bundle / "qformer_voting.onnx"), Reference(load_checkpoint(str(checkpoint)))


def random_image_embeds(reference: Reference, batch: int) -> np.ndarray:
    rng = np.random.default_rng(5)
    images = [Image.fromarray(rng.integers(0, 256, (80, 80, 3), np.uint8)) for _ in range(batch)]
    return reference.image_embeds(reference.pixel_values(images)).embeds.numpy()


def maps_of(evidence: Evidence) -> list[np.ndarray]:
    return [layer.numpy() for layer in evidence.cross_attention if layer is not None]


def test_scores_are_the_counted_rank_points(session: ort.InferenceSession, reference: Reference) -> None:
    image_embeds = random_image_embeds(reference, 3)
    embeds, evidence = reference.query_embeds(torch.from_numpy(image_embeds))
    maps = maps_of(evidence)
    assert [m.shape for m in maps] == [(3, 6, 24, 50)] * 3  # three cross-attention layers of five
    expected, slack = count_points(maps), rank_points(maps).slack
    for kept in (1, 7, 17, 24):
        feeds = {"image_embeds": image_embeds, "num_kept": np.array([kept])}
        indices, kept_embeds, scores = session.run(["kept_indices", "kept_embeds", "token_scores"], feeds)
        assert scores.dtype == np.float32 and scores.shape == (3, 24)
        assert (np.abs(scores - expected) <= slack).all()
        assert np.ptp(scores, axis=1).min() > 100 * slack.max()  # the votes differ by far more than rounding could move
        top = np.sort(np.argsort(-scores, axis=1, kind="stable")[:, :kept], axis=1)
        assert indices.dtype == np.int64 and (indices == top).all() and (indices == top_indices(scores, kept)).all()
        wanted = np.take_along_axis(embeds.numpy(), indices[:, :, None], axis=1)
        assert np.abs(kept_embeds - wanted).max() <= 1e-4 * np.abs(wanted).max()


def test_every_method_scores_as_numpy_does(compared: tuple[ort.InferenceSession, Reference]) -> None:
    session, reference = compared
    image_embeds = random_image_embeds(reference, 2)
    _, evidence = reference.query_embeds(torch.from_numpy(image_embeds))
    maps = maps_of(evidence)
    names = [output.name for output in session.get_outputs()]
    feeds = {"image_embeds": image_embeds, "num_kept": np.array([4])}
    found = dict(zip(names, session.run(names, feeds)))
    slack = rank_points(maps).slack
    assert (np.abs(found[scores_of("catp")] - count_points(maps)) <= slack).all()
    expected = {
        "coverage": cover_greedily(maps, image_embeds),
        "distinct": pivoted_lengths(evidence.query_embeds.numpy()),
        "l2-norm": np.linalg.norm(evidence.query_embeds.numpy(), axis=2),
        "self-attention": received([layer.numpy() for layer in evidence.self_attention]),
    }
    for method, scores in expected.items():
        np.testing.assert_allclose(found[scores_of(method)], scores, rtol=1e-3, atol=1e-4 * scores.max())
    np.testing.assert_allclose(found[LAYER_POINTS].sum(1), found[scores_of("catp")], rtol=1e-6)
    attention = np.mean([layer.mean(1) for layer in maps], axis=0)
    np.testing.assert_allclose(found[QUERY_ATTENTION], attention, atol=1e-5)


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
