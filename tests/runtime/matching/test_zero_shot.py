"""Zero-shot classes, against Hugging Face's vectors and the definition in CLIP's paper."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, CLIPModel

from catp.export.demo import scenes
from catp.runtime import Pipeline, UsageError
from catp.runtime.matching.zero_shot import probabilities

CLASSES = ["red", "the thing in the bottom right", "green"]
TEMPLATES = ["a photo of a {}", "{}", "there is {} here, and {} there"]


@torch.no_grad()
def test_probabilities_are_a_softmax_over_the_mean_of_each_class(clip_bundle: Path, clip_checkpoint: Path) -> None:
    images = [example.image for example in scenes.examples(3, seed=2)]
    processor = AutoProcessor.from_pretrained(clip_checkpoint, backend="pil")
    model = CLIPModel.from_pretrained(clip_checkpoint).eval()
    pixels = processor(images=images, return_tensors="pt")
    seen = model.get_image_features(**pixels).pooler_output
    seen /= seen.norm(dim=1, keepdim=True)
    means = []
    for name in CLASSES:
        sentences = [template.replace("{}", name) for template in TEMPLATES]
        found = model.get_text_features(**processor(text=sentences, return_tensors="pt", padding=True)).pooler_output
        mean = (found / found.norm(dim=1, keepdim=True)).mean(0)
        means.append(mean / mean.norm())
    wanted = (model.logit_scale.exp() * seen @ torch.stack(means).T).softmax(1).numpy()
    classified = Pipeline.load(clip_bundle).classify(images, CLASSES, TEMPLATES)
    np.testing.assert_allclose([list(each.probabilities.values()) for each in classified], wanted, atol=1e-5)
    assert [each.label for each in classified] == [CLASSES[place] for place in wanted.argmax(1)]
    assert [list(each.probabilities) for each in classified] == [CLASSES] * 3 and np.ptp(wanted) > 1e-2


@pytest.mark.parametrize(
    ("classes", "templates", "message"),
    [
        ([], ["{}"], "0 classes and 1 templates"),
        (["cat"], [], "1 classes and 0 templates"),
        (["cat", "dog", "cat"], ["{}"], "'cat' is there twice"),
        (["cat"], ["a photo"], "it has no {} where the class stands"),
    ],
)
def test_classes_that_can_not_be_told_apart_are_refused(
    clip_bundle: Path, classes: list[str], templates: list[str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        Pipeline.load(clip_bundle).classify([np.zeros((8, 8, 3), np.uint8)], classes, templates)


def test_a_large_scale_stays_a_number() -> None:
    vectors = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    np.testing.assert_allclose(probabilities(vectors, vectors, 1e6), np.eye(2))
