import numpy as np

from catp.export.demo import samples, scenes
from catp.runtime.inputs.images import load_image


def test_the_same_seed_gives_the_same_examples() -> None:
    first, second = (list(scenes.examples(5, seed=4, per_image=2)) for _ in range(2))
    for a, b in zip(first, second):
        assert a.question == b.question and a.scene == b.scene
        assert (np.asarray(a.image) == np.asarray(b.image)).all()
    assert first[0].scene == first[1].scene != first[2].scene


def test_held_out_layouts_are_never_trained_on() -> None:
    train = {e.scene for e in scenes.examples(2000, seed=0, split="train")}
    held_out = {e.scene for e in scenes.examples(2000, seed=0)}
    assert all(scene.split == "train" for scene in train)
    assert not train & held_out


def test_scenes_are_what_they_say() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        scene = scenes.random_scene(rng, "train")
        assert 2 <= len(scene.things) <= 5
        assert len({t.color for t in scene.things}) == len({t.cell for t in scene.things}) == len(scene.things)
        for question in scenes.questions(scene, rng, 3):
            assert question.prompt.startswith("Question: ") and question.prompt.endswith("? Answer:")
            assert right(scene, question)


def right(scene: scenes.Scene, question: scenes.SceneQuestion) -> bool:
    """Whether the answer follows from the scene, by reading the question."""
    text, answer = question.prompt, question.answer
    place = max((p for p in scenes.PLACES if f"the {p}?" in text), key=len, default=None)
    there = scene.at(scenes.PLACES.index(place)) if place else None
    if "what is in" in text:
        return answer == (f"a {there.color} {there.shape}" if there else "nothing")
    if "what color is the shape" in text:
        return there is not None and answer == there.color
    if "what shape is in" in text:
        return there is not None and answer == there.shape
    words = text.removesuffix("? Answer:").split()
    matching = [
        t
        for t in scene.things
        if all(w in (t.color, t.shape) for w in words if w in scenes.COLORS or w in scenes.SHAPES)
    ]
    (thing,) = matching  # every question has one answer
    return answer == (scenes.PLACES[thing.cell] if "where" in text else thing.color if "color" in text else thing.shape)


def test_the_sample_images_are_pictures_with_questions() -> None:
    assert len(samples()) >= 3
    assert len({len(s.prompt) for s in samples()}) > 1
    for sample in samples():
        assert load_image(sample.image).size == (scenes.CANVAS, scenes.CANVAS)
