"""Shares of an encoder's work become schedules, or one line that says why not."""

from pathlib import Path

import pytest

from catp.calibration.benchmark.options import parse_shares
from catp.calibration.benchmark.schedules import find_schedules
from catp.runtime import EncoderWish, UsageError
from catp.runtime.bundle.folder import Bundle, open_bundle

pytestmark = pytest.mark.heavy


def test_each_share_is_a_schedule_and_without_any_it_is_the_bundles_own(
    twice_pruned_bundle: Path, demo_bundle: Path
) -> None:
    bundles = {"pruned": open_bundle(twice_pruned_bundle), "dense": open_bundle(demo_bundle)}
    spec = bundles["pruned"].manifest.encoder_pruning
    assert spec is not None
    found = find_schedules(bundles, (0.8, 0.5))
    assert list(found) == ["pruned"] and [schedule.flops for schedule in found["pruned"]] == [0.8, 0.5]
    for schedule in found["pruned"]:
        assert schedule.kept_tokens == EncoderWish(flops=schedule.flops).schedule(spec) == schedule.wish.kept_tokens
        assert (schedule.rule, schedule.layers, schedule.left) == ("tome", (0, 1, 2, 3), schedule.kept_tokens[-1] + 1)
        assert schedule.share == pytest.approx(schedule.flops, abs=0.02)
        assert (
            schedule.gflops
            == pytest.approx(schedule.share * schedule.gflops_dense)
            == spec.gflops(schedule.kept_tokens)
        )
    (own,) = find_schedules(bundles, ())["pruned"]
    assert (own.flops, own.kept_tokens) == (None, spec.kept_tokens)
    assert find_schedules({"dense": bundles["dense"]}, ()) == {}


def test_what_can_not_be_kept_is_refused(twice_pruned_bundle: Path, demo_bundle: Path) -> None:
    bundle = open_bundle(twice_pruned_bundle)
    with pytest.raises(UsageError, match=r"^bundle .*twice-pruned-bundle: encoder flops 0.01: pruning in layers"):
        find_schedules({"x": bundle}, (0.5, 0.01))
    with pytest.raises(UsageError, match=r"no vision encoder of .*demo-bundle prunes"):
        find_schedules({"x": open_bundle(demo_bundle)}, (0.5,))
    spec = bundle.manifest.encoder_pruning
    assert spec is not None
    counting = spec.model_copy(update={"form": "dynamic", "kept_tokens": None, "temperature": 1.0})
    dynamic = Bundle(bundle.path, bundle.manifest.model_copy(update={"encoder_pruning": counting}))
    with pytest.raises(UsageError, match="counts tokens by its temperature"):
        find_schedules({"x": bundle, "y": dynamic}, (0.5,))
    assert list(find_schedules({"x": bundle, "y": dynamic}, ())) == ["x"]


def test_shares_are_read_from_the_largest_on() -> None:
    assert parse_shares("0.2, 0.5,0.2") == (0.5, 0.2)


@pytest.mark.parametrize("text", ["", "half", "0", "1", "0.5,", "nan", "-0.5", "50"])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="give shares of the dense encoder's work, above 0 and below 1"):
        parse_shares(text)
