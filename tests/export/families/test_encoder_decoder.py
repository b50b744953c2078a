"""Flan-T5 beside what the table of families shows: its precision, and what positions mean to it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from catp.export.checkpoints.loading import load_checkpoint
from catp.export.demo import samples
from catp.export.graphs.t5_bias import DistanceBias
from catp.runtime import Pipeline
from catp.runtime.language_models.base import Batch
from catp.runtime.language_models.encoder_decoder import EncoderDecoder


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_leaves_a_feed_forward_layer_stays_float32_in_half_precision_as_in_transformers(
    t5_checkpoint: Path, dtype: torch.dtype
) -> None:
    checkpoint = load_checkpoint(str(t5_checkpoint))
    checkpoint.family.set_dtype(checkpoint.model, dtype)
    loaded = checkpoint.family.model_class().from_pretrained(t5_checkpoint, dtype=dtype).language_model
    wanted = {name: parameter.dtype for name, parameter in loaded.named_parameters()}
    assert {n: p.dtype for n, p in checkpoint.model.language_model.named_parameters()} == wanted
    assert any(".wo." in name and found != dtype for name, found in wanted.items()) == (dtype == torch.float16)


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_biases_by_distance_are_those_by_place(t5_checkpoint: Path, stack: str) -> None:
    attention = getattr(load_checkpoint(str(t5_checkpoint)).model.language_model, stack).block[0].layer[0].SelfAttention
    places = torch.arange(60)
    distances = (places[None, :] - places[:, None])[None]
    bias = DistanceBias(attention, bidirectional=stack == "encoder")(distances, torch.tensor(True))
    assert bias.equal(attention.compute_bias(60, 60))


def test_positions_decide_and_rows_stay_apart(t5_bundle: Path) -> None:
    """Shifting all positions changes nothing, for only distances count; closing the gaps of pruning does."""
    model = Pipeline.load(t5_bundle).language_model
    assert isinstance(model, EncoderDecoder)
    kept = np.array([[0, 3, 17], [5, 6, 23]])
    embeds = np.random.default_rng(0).normal(size=(2, 3, 36)).astype(np.float32)
    prompts = [[9, 40, 31], [7, 8, 12, 55, 2]]

    def logits(positions: np.ndarray, start: int, rows: slice = slice(None)) -> np.ndarray:
        batch = Batch(embeds[rows], positions[rows], start, prompts[rows])
        decoding = model.begin(batch, 1, output="logits")  # its memory is the result's
        return decoding.prefill().copy()

    original = logits(kept, 24)
    tolerance = 1e-4 * np.abs(original).max()
    np.testing.assert_allclose(logits(kept + 100, 124), original, rtol=0, atol=tolerance)
    np.testing.assert_allclose(logits(kept, 24, slice(0, 1)), original[:1], rtol=0, atol=tolerance)
    compact = logits(np.tile(np.arange(3), (2, 1)), 3)
    assert np.abs(compact - original).max() > 100 * tolerance


@pytest.mark.parametrize("num_beams", [1, 2])
def test_several_questions_about_one_image_are_answered_as_each_alone(t5_bundle: Path, num_beams: int) -> None:
    pipeline, image = Pipeline.load(t5_bundle), samples()[1].image
    prompts = ["what is red?", "Question: where is the green circle in this picture? Answer:", "red"]
    together = pipeline.ask(image, prompts, max_new_tokens=5, num_beams=num_beams)
    alone = [pipeline.generate([image], [prompt], max_new_tokens=5, num_beams=num_beams)[0] for prompt in prompts]
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]
