"""Both small BLIPs are genuinely trained, and are what their cards say."""

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoProcessor, AutoTokenizer, BlipForQuestionAnswering

from catp.export.demo.vqa import CHECKPOINT, DENSE, samples
from catp.export.demo.vqa.batches import AskedPicture
from catp.export.demo.vqa.evaluation import easy_test, held_out_scenes, score
from catp.export.demo.vqa.train import VqaRecipe, measure, train, write
from catp.export.demo.vqa.untrained import make_processor
from catp.runtime.inputs.images import load_image

pytestmark = pytest.mark.heavy

BOTH = pytest.mark.parametrize("folder", [CHECKPOINT, DENSE], ids=["madtp", "dense"])

MARGIN = 0.07
"""By how much a hundred questions may fall below what was recorded on more of them."""


ACCURATE = 0.9
"""Exact match below which a model would be no use for comparing ways of pruning."""


def record(folder: Path) -> dict:  # type: ignore[type-arg]
    return json.loads((folder / "training.json").read_text())


def recorded(folder: Path, world: str, pruning: str) -> dict:  # type: ignore[type-arg]
    (found,) = (s for s in record(folder)["result"]["scores"] if (s["world"], s["pruning"]) == (world, pruning))
    return found


@pytest.fixture(scope="module", params=[CHECKPOINT, DENSE], ids=["madtp", "dense"])
def loaded(request: pytest.FixtureRequest) -> tuple[Path, BlipForQuestionAnswering]:
    model, found = BlipForQuestionAnswering.from_pretrained(
        request.param, output_loading_info=True, dtype=torch.float32
    )
    assert not found["missing_keys"] and not found["unexpected_keys"]
    return request.param, model.eval()


def madtp() -> tuple[torch.Tensor, float]:
    (dictionary,) = load_file(CHECKPOINT / "madtp.safetensors").values()
    return dictionary.float(), json.loads((CHECKPOINT / "madtp.json").read_text())["temperature"]


def test_madtps_own_files_lie_beside_the_checkpoint() -> None:
    tensors = load_file(CHECKPOINT / "madtp.safetensors")
    assert {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()} == {
        "space_dict": ((100, 128), torch.float16)
    }
    assert madtp()[1] > 0
    assert not (DENSE / "madtp.safetensors").exists()


@BOTH
def test_it_is_an_ordinary_checkpoint_of_at_most_ten_megabytes(folder: Path) -> None:
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 10_000_000
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    assert processor.image_processor(load_image(samples()[0].image), return_tensors="np").pixel_values.shape[-1] == 96
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer("What color is the star?").input_ids) == "[CLS] what color is the star ? [SEP]"


def test_it_answers_as_recorded(loaded: tuple[Path, BlipForQuestionAnswering]) -> None:
    folder, model = loaded
    way, pruning = ("MADTP", madtp()) if folder == CHECKPOINT else ("none", None)
    for world, pictures in (("held-out scenes", held_out_scenes(25, seed=4)), ("easy-vqa test", easy_test(20))):
        said = recorded(folder, world, way)
        found = score(model, make_processor(), pictures, pruning)
        assert found.questions > 100
        assert found.exact_match >= said["exact_match"] - MARGIN, world
        assert abs(found.vision_macs / said["vision_macs"] - 1) < 0.1
        assert said["exact_match"] >= ACCURATE


def test_what_counts_as_right_is_what_generate_gets_right(loaded: tuple[Path, BlipForQuestionAnswering]) -> None:
    folder, model = loaded
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    asked = [(load_image(sample.image), sample.prompt, sample.answer) for sample in samples()]
    asked += [(picture.image, *pair) for picture in easy_test(4) for pair in picture.asked]
    asked += [(image, prompt, "red") for image, prompt, _ in asked[:6]]  # answers that are wrong
    counted, generated = [], []
    for image, prompt, answer in asked:
        inputs = processor(images=image, text=prompt, return_tensors="pt")
        with torch.no_grad():
            ids = model.generate(**inputs, max_new_tokens=8, num_beams=1, do_sample=False)[0]
        generated.append(float(processor.decode(ids, skip_special_tokens=True) == answer))
        picture = AskedPicture(image, np.zeros((0, 2), dtype=np.int64), [(prompt, answer)])
        counted.append(score(model, processor, [picture]).exact_match)
    assert counted == generated
    assert 0.7 * len(asked) < sum(counted) < len(asked)


def test_pruning_leaves_about_half_of_the_operations() -> None:
    pruned = recorded(CHECKPOINT, "held-out scenes", "MADTP")["vision_macs"]
    assert 0.4 <= pruned / recorded(CHECKPOINT, "held-out scenes", "none")["vision_macs"] <= 0.6


@BOTH
def test_the_card_says_how_it_was_made(folder: Path) -> None:
    card, recipe = (folder / "README.md").read_text(), record(folder)["recipe"]
    assert "python -m catp.export.demo.vqa.train" in card and "MIT licence" in card
    assert recipe == {field.name: field.default for field in fields(VqaRecipe)}
    for phase in (
        "patch_steps",
        "shape_steps",
        "crowd_steps",
        "question_steps",
        "joint_steps",
        "branch_steps",
        "final_steps",
    ):
        assert f"{recipe[phase]:,}" in card
    for entry in record(folder)["result"]["scores"]:
        assert f"{entry['exact_match']:.1%}" in card


def test_the_twins_have_one_recipe() -> None:
    assert record(CHECKPOINT)["recipe"] == record(DENSE)["recipe"]


@pytest.mark.filterwarnings("ignore")
def test_the_training_script_still_trains_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    sizes = {"images_per_batch": 6, "questions_per_image": 2}
    steps = {f"{phase}_steps": 1 for phase in ("patch", "shape", "crowd", "question", "joint", "branch", "final")}
    recipe = VqaRecipe(**sizes, **steps)  # type: ignore[arg-type]
    weights = []
    for _ in range(2):  # the second time, everything is there
        for branch, training in train(recipe, make_processor(), tmp_path / "work", threads=torch.get_num_threads()):
            weights.append(training.model.vision_model.post_layernorm.weight.detach().clone())
            scores = measure(training, branch == "madtp", scene_pictures=2, easy_pictures=2)
            write(training, tmp_path / branch, scores, branch == "madtp")
    assert torch.equal(weights[0], weights[2]) and torch.equal(weights[1], weights[3])
    assert not torch.equal(weights[0], weights[1])
    BlipForQuestionAnswering.from_pretrained(tmp_path / "madtp")
