"""Candidates of one share of the work, for a vision encoder as large as BLIP's and for one as small as the demo's."""

from __future__ import annotations

import pytest

from catp.calibration.encoder.shapes import EVEN, NEAR, candidates
from catp.runtime.bundle.encoder_pruning import EncoderPruningSpec, EncoderSizes, Rule, dense_gflops
from catp.runtime.bundle.encoder_schedules import even_schedule
from catp.runtime.errors import UsageError

LARGE = EncoderSizes(patches=576, patch_values=768, layers=12, width=768, feed_forward=3072)
SMALL = EncoderSizes(patches=36, patch_values=768, layers=4, width=128, feed_forward=512)


def spec(sizes: EncoderSizes, rule: Rule = "tome", layers: tuple[int, ...] | None = None) -> EncoderPruningSpec:
    layers = layers or tuple(range(sizes.layers))
    kept = tuple(sizes.patches - 2 * (place + 1) for place in range(len(layers)))
    return EncoderPruningSpec(
        rule=rule, merge="nearest", form="schedule", layers=layers, kept_tokens=kept, source="test", sizes=sizes,
        gflops_dense=dense_gflops(sizes),
    )  # fmt: skip


@pytest.mark.parametrize("sizes", [LARGE, SMALL], ids=["large", "small"])
@pytest.mark.parametrize("share", [0.8, 0.65, 0.5])
def test_candidates_do_the_same_work_and_differ(sizes: EncoderSizes, share: float) -> None:
    of = spec(sizes)
    found = candidates(of, share)
    assert found[0].name == EVEN and found[0].kept_tokens == even_schedule(of, share)
    work = [of.gflops(shape.kept_tokens) / of.gflops_dense for shape in found]
    assert len(found) >= 4 and max(abs(one - work[0]) for one in work) <= NEAR
    if sizes is LARGE:  # where single tokens weigh little
        assert max(abs(one - work[0]) for one in work) < 0.0005
    assert len({shape.kept_tokens for shape in found}) == len({shape.name for shape in found}) == len(found)
    for shape in found:
        assert of.check(shape.kept_tokens) == shape.kept_tokens


def test_names_say_where_tokens_go() -> None:
    found = {shape.name: shape.kept_tokens for shape in candidates(spec(LARGE), 0.8)}
    even = found[EVEN]
    for name in ("later layers prune more", "last layers prune most", "last half of the layers prunes"):
        assert found[name][0] > even[0] and found[name][-1] < even[-1], name
    for name in ("earlier layers prune more", "first layers prune most", "first half of the layers prunes"):
        assert found[name][3] < even[3] and found[name][-1] > even[-1], name
    assert found["last half of the layers prunes"][:5] == (574, 572, 570, 568, 566)
    steep, gentle = found["last layers prune most"], found["later layers prune more"]
    assert steep[0] > gentle[0] and steep[-1] < gentle[-1]


def test_what_can_not_leave_the_share_is_no_candidate() -> None:
    (only,) = candidates(spec(LARGE, layers=(2,)), 0.8)
    assert only.name == EVEN
    # Half of the layers, each of which ToMe halves at most, can't leave half of the work if they come late.
    assert "last half of the layers prunes" not in {shape.name for shape in candidates(spec(LARGE), 0.5)}
    with pytest.raises(UsageError, match=r"flops 0\.05: pruning in layers"):
        candidates(spec(LARGE), 0.05)
