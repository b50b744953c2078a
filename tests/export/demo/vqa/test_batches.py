import numpy as np
import torch

from catp.export.demo import scenes
from catp.export.demo.vqa import easy, samples
from catp.export.demo.vqa.batches import COLORS, IGNORE, NOTHING, SHAPES, VqaBatches, cell_of_patch
from catp.export.demo.vqa.evaluation import easy_test, held_out_scenes
from catp.export.demo.vqa.untrained import PATCHES, UNKNOWN, make_processor
from catp.runtime.inputs.images import load_image


def batches(split: scenes.Split = "train", seed: int = 3) -> VqaBatches:
    return VqaBatches(make_processor(), split, 9, images_per_batch=6, questions_per_image=4, seed=seed)


def test_batch_i_is_a_function_of_seed_split_and_i() -> None:
    first, second = batches(), batches()
    second[0]  # what was asked for before does not matter
    a, b = first[5], second[5]
    for name in ("pixel_values", "patches", "questions", "answers", "labels"):
        assert torch.equal(getattr(a, name), getattr(b, name))
    for other in (first[4], batches(seed=4)[5], batches("held-out")[5]):
        assert not torch.equal(a.pixel_values, other.pixel_values)


def test_crowded_scenes_have_something_nearly_everywhere_and_the_end_is_mostly_easy_vqas() -> None:
    def of(**kind: bool) -> torch.Tensor:
        made = VqaBatches(make_processor(), "train", 1, images_per_batch=12, questions_per_image=2, seed=0, **kind)
        return made[0].patches[..., 0]

    nothing = COLORS.index(NOTHING)
    assert (of(crowded=True)[:8] == nothing).float().mean() < 0.25
    assert (of()[:8] == nothing).float().mean() > 0.4
    for colors, easy_ones in ((of(), 4), (of(final=True), 8)):  # easy-vqa's name one colour in all patches, or none
        assert [len(set(row.tolist())) == 1 for row in colors] == [False] * (12 - easy_ones) + [True] * easy_ones


def test_every_word_is_known() -> None:
    tokenizer = make_processor().tokenizer
    pictures = [*easy.pictures("train"), *easy.pictures("test")]
    texts = {text for picture in pictures for pair in picture.questions for text in pair}
    texts |= {text for picture in held_out_scenes(300, seed=0) for pair in picture.asked for text in pair}
    assert len(texts) > 250
    assert UNKNOWN not in {i for ids in tokenizer(sorted(texts)).input_ids for i in ids}
    assert tokenizer("What is a house?").input_ids.count(UNKNOWN) == 1


def test_labels_are_the_answer_and_its_end() -> None:
    made = batches()
    batch, tokenizer = made[1], made.tokenizer
    for answers, labels in zip(batch.answers.flatten(0, 1), batch.labels.flatten(0, 1)):
        told = labels[labels != IGNORE]
        assert tokenizer.decode(told).endswith("[SEP]")
        assert answers[1 : len(told)].tolist() == told[:-1].tolist()
        assert tokenizer.decode(answers[:1]) == "[DEC]"


def test_patches_are_told_what_their_cell_shows() -> None:
    (picture,) = held_out_scenes(1, seed=5)
    grid = cell_of_patch().reshape(PATCHES, PATCHES)
    assert grid[0, 0] == 0 and grid[0, -1] == 2 and grid[-1, 0] == 6 and grid[PATCHES // 2, PATCHES // 2] == 4
    pixels = np.asarray(picture.image)
    size = scenes.CANVAS // scenes.GRID
    for cell in range(scenes.GRID**2):
        color, shape = picture.patches[cell_of_patch() == cell][0]
        row, column = divmod(cell, scenes.GRID)
        middle = tuple(pixels[int((row + 0.5) * size), int((column + 0.5) * size)])
        if COLORS[color] == NOTHING:
            assert SHAPES[shape] == NOTHING and len(set(middle)) == 1 and middle[0] >= 215
        else:
            assert (pixels[row * size : (row + 1) * size, column * size : (column + 1) * size].reshape(-1, 3)
                    == scenes.COLORS[COLORS[color]]).all(-1).any()  # fmt: skip


def test_easy_vqa_is_split_as_its_maker_split_it() -> None:
    train, test = easy.pictures("train"), easy.pictures("test")
    assert (len(train), len(test)) == (4000, 1000)
    assert len(easy_test(7)) == 7 and easy_test(7)[3].asked == test[3].questions
    assert all("/train/" in picture.file.as_posix() for picture in train)
    # Pictures are drawn at random: none of the first hundred to test with was trained on, by its pixels.
    seen = {picture.pixels.tobytes() for picture in train}
    assert not seen & {picture.pixels.tobytes() for picture in test}


def test_turning_a_picture_changes_no_colour() -> None:
    picture = easy.pictures("train")[0]
    forms = [np.asarray(picture.turned(symmetry)) for symmetry in range(8)]
    assert (forms[0] == picture.pixels).all()
    assert len({form.tobytes() for form in forms}) == 8
    assert len({tuple(np.unique(form.reshape(-1, 3), axis=0, return_counts=True)[1]) for form in forms}) == 1


def test_the_sample_images_are_pictures_with_questions() -> None:
    assert {load_image(sample.image).size for sample in samples()} == {(scenes.CANVAS, scenes.CANVAS), (64, 64)}
    for sample in samples():
        assert sample.prompt.endswith("?")
