"""Schedules and the work that they leave, against counting by hand."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from catp.runtime import UsageError
from catp.runtime.bundle.encoder_pruning import EncoderPruningSpec, EncoderSizes, Merge, Rule, dense_gflops
from catp.runtime.bundle.encoder_schedules import even_schedule, mean_schedule, shaped_schedule

VIT_BASE_384 = EncoderSizes(patches=576, patch_values=768, layers=12, width=768, feed_forward=3072)


def spec(layers: tuple[int, ...] = tuple(range(12)), rule: Rule = "madtp", merge: Merge = "one") -> EncoderPruningSpec:
    sizes = VIT_BASE_384
    least = 288 if rule == "tome" else 100
    kept = tuple(least + 50 * (len(layers) - number) for number in range(len(layers)))[: len(layers)]
    kept = tuple(min(count, 574 - 3 * number) for number, count in enumerate(kept))
    return EncoderPruningSpec(
        rule=rule, merge=merge, form="schedule", layers=layers, kept_tokens=kept, source="test", sizes=sizes,
        gflops_dense=dense_gflops(sizes),
    )  # fmt: skip


def test_dense_work_is_what_counters_of_operations_say() -> None:
    """fvcore counts 55.5 GMAC for ViT-B/16 at 384 x 384."""
    assert dense_gflops(VIT_BASE_384) / 2 == pytest.approx(55.5, abs=0.1)


def test_work_of_a_schedule_by_hand() -> None:
    found = spec(layers=(0, 2))
    a, b = found.kept_tokens or ()
    total = 2e-9 * 576 * 768 * 768  # the patches
    tokens = [(577, a + 2), (a + 2, a + 2), (a + 2, b + 2), *[(b + 2, b + 2)] * 9]
    for incoming, left in tokens:
        total += 2e-9 * (4 * incoming * 768**2 + 2 * incoming**2 * 768 + 2 * left * 768 * 3072)
    assert found.gflops(found.kept_tokens or ()) == pytest.approx(total, rel=1e-12)


def test_a_layer_that_keeps_all_that_came_in_adds_no_token() -> None:
    found = spec(layers=(0, 1))
    assert found.tokens_by_layer([576, 300])[:3] == [(577, 577), (577, 302), (302, 302)]


@pytest.mark.parametrize("share", [0.8, 0.5, 0.2])
@pytest.mark.parametrize(("rule", "merge"), [("madtp", "one"), ("cls", "nearest"), ("random", "drop")])
def test_even_schedules_leave_the_share(share: float, rule: Rule, merge: Merge) -> None:
    found = spec(rule=rule, merge=merge)
    kept = even_schedule(found, share)
    assert found.gflops(kept) / found.gflops_dense == pytest.approx(share, abs=0.01)
    assert found.check(kept) == kept
    fractions = [k / (before + found.added) for k, before in zip(kept[1:], kept)]
    assert max(fractions) - min(fractions) < 0.1


@pytest.mark.parametrize(("rule", "merge"), [("cls", "nearest"), ("tome", "nearest"), ("madtp", "one")])
def test_a_deep_encoder_leaves_a_fifth(rule: Rule, merge: Merge) -> None:
    """BLIP-2's own: of 256 patches each of 39 layers must leave out some, so the first ones can't keep the last few."""
    sizes = EncoderSizes(patches=256, patch_values=588, layers=39, width=1408, feed_forward=6144)
    start = EncoderPruningSpec.model_construct(
        rule=rule, merge=merge, form="schedule", layers=tuple(range(39)), sizes=sizes, gflops_dense=dense_gflops(sizes)
    )
    for share in (0.5, 0.2):
        kept = even_schedule(start, share)
        assert start.check(kept) == kept and start.gflops(kept) / start.gflops_dense == pytest.approx(share, abs=0.005)
    fractions = [
        k / (before + start.added) for k, before in zip(even_schedule(start, 0.5)[1:], even_schedule(start, 0.5))
    ]
    assert max(fractions) - min(fractions) < 0.03  # of which none needed to be spared


def test_too_little_work_for_the_layers_that_prune() -> None:
    with pytest.raises(UsageError, match="pruning in layers 8 leaves at least"):
        even_schedule(spec(layers=(8,)), 0.3)
    with pytest.raises(UsageError, match="a share of the encoder's work"):
        even_schedule(spec(), 1.5)


def test_weights_say_which_layers_prune() -> None:
    found = spec(layers=(0, 1, 2, 3), rule="cls", merge="nearest")
    late = shaped_schedule(found, 0.8, (0, 0, 1, 1))
    assert late[:2] == (574, 572)  # as few as a layer can leave out
    assert late[2] / 572 == pytest.approx(late[3] / late[2], abs=0.01) and late[2] / 572 < 0.95
    rising = shaped_schedule(found, 0.8, (1, 2, 3, 4))
    first, *later = (after / before for before, after in zip((576, *rising), rising))
    assert later == pytest.approx([first**2, first**3, first**4], abs=0.01)
    for kept in (late, rising):
        assert found.gflops(kept) / found.gflops_dense == pytest.approx(0.8, abs=0.01)
    with pytest.raises(UsageError, match="leaves at least"):
        shaped_schedule(found, 0.2, (0, 0, 0, 1))


def test_mean_counts_become_a_schedule_that_runs() -> None:
    found = spec(layers=(0, 1, 2))
    counts = [[576, 301, 100], [500, 300, 0]]
    assert mean_schedule(found, counts) == (538, 300, 50)
    assert mean_schedule(found, [[576, 577, 578]]) == (574, 573, 572)  # no layer can keep all
    assert mean_schedule(found, [[1, 2, 2]]) == (3, 2, 1)  # each leaves the next one enough


def test_bounds_are_schedules() -> None:
    for rule in ("madtp", "tome"):
        found = spec(layers=(0, 1, 2), rule=rule, merge="one" if rule == "madtp" else "nearest")  # type: ignore[arg-type]
        least, most = found.bounds()
        assert found.check(least) == least and found.check(most) == most
        with pytest.raises(UsageError):
            found.check((most[0] + 1, *most[1:]))
        with pytest.raises(UsageError):
            found.check((*least[:-1], least[-1] - 1))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layers": (0, 12)}, "of an encoder with layers 0 to 11"),
        ({"layers": (1, 0)}, "layers"),
        ({"kept_tokens": (9,)}, "1 counts; this encoder prunes in 2 layers"),
        ({"kept_tokens": None}, "the schedule form has a schedule alone"),
        ({"temperature": 0.5}, "the schedule form has a schedule alone"),
        ({"form": "dynamic", "kept_tokens": None, "temperature": 0.5, "rule": "cls"}, "cls has no dynamic form"),
        ({"temperature": float("nan")}, "temperature"),
        ({"gflops_dense": float("inf")}, "gflops_dense"),
        ({"gflops_dense": 1.0}, "gflops_dense: not the work of an encoder of these sizes"),
        ({"sizes": {**VIT_BASE_384.model_dump(), "patch_values": 10**400}}, "patch_values"),
        ({"layers": tuple(range(2000))}, "layers"),
        ({"kept_tokens": (10**4000, 3)}, "kept_tokens"),
        ({"gflops_pruned": float("inf")}, "gflops_pruned"),
    ],
)
def test_manifests_that_contradict_themselves(changes: dict[str, object], words: str) -> None:
    content = spec(layers=(0, 1)).model_dump()
    with pytest.raises(ValidationError, match=words):
        EncoderPruningSpec.model_validate({**content, **changes})
