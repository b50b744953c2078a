"""What a checkpoint's configuration says about generation is the bundle's default, refused, or told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from catp.export.checkpoints.generation_settings import describe_unfollowed, read_settings
from catp.export.checkpoints.loading import Checkpoint
from catp.export.demo import samples
from catp.export.verification.reference import Reference
from catp.runtime import Pipeline, UsageError
from catp.runtime.bundle.folder import Bundle
from catp.runtime.bundle.generation_settings import GREEDY
from catp.runtime.inputs.images import load_image


@pytest.fixture
def checkpoint(demo_checkpoint: Checkpoint) -> Iterator[Checkpoint]:
    """Whose configurations may be replaced."""
    model, language_model = demo_checkpoint.model, demo_checkpoint.model.language_model
    before = model.generation_config, language_model.generation_config
    yield demo_checkpoint
    model.generation_config, language_model.generation_config = before


def configure(part: Any, **settings: Any) -> None:
    part.generation_config = GenerationConfig(eos_token_id=2, pad_token_id=1, bos_token_id=2, **settings)


def test_the_demo_is_greedy(demo_checkpoint: Checkpoint) -> None:
    assert read_settings(demo_checkpoint) == GREEDY
    assert describe_unfollowed(demo_checkpoint) is None


def test_settings_of_the_language_model_are_the_default(checkpoint: Checkpoint) -> None:
    configure(checkpoint.model.language_model, num_beams=5, length_penalty=0.0, early_stopping=True, top_k=0)
    assert read_settings(checkpoint) == GREEDY.override(num_beams=5, length_penalty=0.0, early_stopping=True, top_k=0)
    configure(checkpoint.model.language_model, max_length=70, stop_strings=["\n"])
    assert read_settings(checkpoint) == GREEDY.override(max_length=70, stop_strings="\n")
    configure(checkpoint.model.language_model, max_length=70, max_new_tokens=9)
    assert read_settings(checkpoint) == GREEDY


def test_a_bundle_answers_as_generate_does_without_arguments(checkpoint: Checkpoint, pipeline: Pipeline) -> None:
    configure(checkpoint.model.language_model, num_beams=3, min_length=52, no_repeat_ngram_size=2, max_new_tokens=9)
    manifest = pipeline.manifest.model_copy(update={"generation": read_settings(checkpoint)})
    text = manifest.text.model_copy(update={"max_new_tokens": 9})
    own = Pipeline(Bundle(pipeline.bundle.path, manifest.model_copy(update={"text": text})), pipeline.provider)
    reference, sample, config = Reference(checkpoint), samples()[0], checkpoint.model.config
    ids = torch.tensor([[config.image_token_index] * config.num_query_tokens + reference.tokenize(sample.prompt)])
    pixel_values = reference.pixel_values([load_image(sample.image)])
    with torch.no_grad():
        output = checkpoint.model.generate(pixel_values=pixel_values, input_ids=ids)
    (answer,) = own.generate([sample.image], [sample.prompt], ratio=0)
    assert answer.token_ids == output[0, ids.shape[1] :].tolist() and len(answer.token_ids) > 8


def test_what_transformers_4_wrote_into_every_file_is_nothing(checkpoint: Checkpoint) -> None:
    configure(
        checkpoint.model.language_model, max_length=20, diversity_penalty=0.0, typical_p=1.0, num_return_sequences=1,
        encoder_no_repeat_ngram_size=0, remove_invalid_values=False, use_cache=True, num_beam_groups=1,
    )  # fmt: skip
    assert read_settings(checkpoint) == GREEDY


@pytest.mark.parametrize(
    "settings",
    [{"bad_words_ids": [[5]]}, {"suppress_tokens": [7]}, {"typical_p": 0.9}, {"penalty_alpha": 0.6}, {"min_p": 0.1}],
    ids=str,
)
def test_what_the_runtime_can_t_do_is_refused_by_name(checkpoint: Checkpoint, settings: dict[str, Any]) -> None:
    configure(checkpoint.model.language_model, **settings)
    ((name, value),) = settings.items()
    with pytest.raises(UsageError) as raised:
        read_settings(checkpoint)
    assert f"{name}={value}" in str(raised.value)


def test_what_hugging_face_does_not_heed_is_told(checkpoint: Checkpoint) -> None:
    configure(checkpoint.model, num_beams=3, top_k=50, max_new_tokens=30)
    told = describe_unfollowed(checkpoint)
    assert told is not None and "num_beams=3" in told and "max_new_tokens=30" in told and "top_k" not in told
    assert read_settings(checkpoint) == GREEDY
