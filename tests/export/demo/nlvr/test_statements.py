"""Statements about two scenes: what is said to be true is, by a reader of its own, and guessing gives half."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np

from catp.export.demo.nlvr.pool import Pool
from catp.export.demo.nlvr.statements import statements
from catp.export.demo.nlvr.untrained import make_tokenizer
from catp.export.demo.scenes import COLORS, PLACES, SHAPES, Scene

NUMBERS = {"two": 2, "three": 3, "four": 4, "five": 5}
COLOR, SHAPE = (f"({'|'.join(words)})" for words in (COLORS, SHAPES))


def is_true(text: str, left: Scene, right: Scene) -> bool:
    """The statement read word by word."""
    sides = {"left": left, "right": right}

    def has(scene: Scene, what: str) -> bool:
        if found := re.fullmatch(f"{COLOR} {SHAPE}", what):
            return any((thing.color, thing.shape) == found.groups() for thing in scene.things)
        if found := re.fullmatch(f"{COLOR} shape", what):
            return any(thing.color == found[1] for thing in scene.things)
        return any(thing.shape == re.fullmatch(SHAPE, what)[1] for thing in scene.things)  # type: ignore[index]

    if found := re.fullmatch(r"both pictures have a (.*)", text):
        return has(left, found[1]) and has(right, found[1])
    if found := re.fullmatch(r"exactly one picture has a (.*)", text):
        return has(left, found[1]) != has(right, found[1])
    if found := re.fullmatch(r"no picture has a (.*)", text):
        return not has(left, found[1]) and not has(right, found[1])
    if found := re.fullmatch(r"the (left|right) picture has a (.*)", text):
        return has(sides[found[1]], found[2])
    if found := re.fullmatch(r"the (left|right) picture has (\w+) shapes", text):
        return len(sides[found[1]].things) == NUMBERS[found[2]]
    if found := re.fullmatch(r"the (left|right) picture has more shapes than the (left|right) picture", text):
        return len(sides[found[1]].things) > len(sides[found[2]].things)
    if text == "both pictures have the same number of shapes":
        return len(left.things) == len(right.things)
    found = re.fullmatch(f"there is a {COLOR} {SHAPE} in the (.*) of the (left|right) picture", text)
    assert found, text
    thing = sides[found[4]].at(PLACES.index(found[3]))
    return thing is not None and (thing.color, thing.shape) == (found[1], found[2])


def test_every_statement_is_as_true_as_it_is_said_to_be() -> None:
    pool = Pool(200, 5, "train")
    kinds: Counter[str] = Counter()
    for _ in range(60):
        pair, _ = pool.draw(1)
        left, right = pool.scenes[pair.first], pool.scenes[pair.second]
        for kind, choices in statements(left, right).items():
            kinds[kind] += all(map(bool, choices))
            for truth, said in enumerate(choices):
                assert all(is_true(text, left, right) == bool(truth) for text in said), (kind, said)
    assert len(kinds) == 10 and min(kinds.values()) > 5


def test_each_kind_is_true_half_of_the_time() -> None:
    pool = Pool(500, 6, "held-out")
    told = [said for _ in range(800) for said in pool.draw(5)[1]]
    for kind in {said.kind for said in told}:
        truths = [said.truth for said in told if said.kind == kind]
        assert len(truths) > 100 and abs(np.mean(truths) - 0.5) < 0.11, kind


def test_every_word_is_in_the_vocabulary() -> None:
    tokenizer, pool = make_tokenizer(), Pool(300, 7, "train")
    texts = {said.text for _ in range(300) for said in pool.draw(5)[1]}
    ids = [tokenizer(text).input_ids for text in texts]
    assert len(texts) > 300 and not any(tokenizer.unk_token_id in found for found in ids)
    assert max(map(len, ids)) <= tokenizer.model_max_length


def test_pairs_are_of_their_split_and_the_same_for_a_seed() -> None:
    first, again, other = (Pool(50, seed, "held-out") for seed in (3, 3, 4))
    assert all(scene.split == "held-out" for scene in first.scenes)
    drawn = [[pool.draw(2) for _ in range(20)] for pool in (first, again, other)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert first.picture(7).tobytes() == again.picture(7).tobytes() != first.picture(7, turn=1).tobytes()
