"""catp-inspect on bundles that prune inside the vision encoder, after it, or both."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from catp.runtime.bundle.folder import open_bundle
from catp.runtime.commands.inspect import app
from catp.runtime.pruning import describe_default


@pytest.mark.heavy
def test_both_prunings_are_shown_with_the_encoders_work(both_bundle: Path) -> None:
    result = CliRunner().invoke(app, [str(both_bundle)])
    assert result.exit_code == 0, result.output
    _, default, encoder, work, *layers = result.stdout.splitlines()
    assert default == (
        "default: catp keeps 16 of 32 query tokens at ratio 0.5, original positions; "
        "tome leaves 17 of 37 image tokens, 70% of the encoder's work"
    )
    assert encoder.startswith("vision encoder: tome in 4 of 4 layers, the others into the nearest kept token;")
    # Each layer's work, and that of the patch embedding, are the encoder's.
    spec = open_bundle(both_bundle).manifest.encoder_pruning
    assert spec is not None
    left, of_dense = (float(number) for number in re.findall(r"([\d.]+) (?:of|GFLOPs)", work))
    shown = [float(line.split()[-2]) for line in layers[: spec.sizes.layers]]
    embedding = 2e-9 * 36 * 3 * 16 * 16 * spec.sizes.width
    assert sum(shown) + embedding == pytest.approx(left, rel=0.01)
    assert left / of_dense == pytest.approx(0.7, abs=0.02)


@pytest.mark.heavy
def test_the_default_says_what_there_is(both_bundle: Path, demo_bundle: Path, pruned_bundle: Path) -> None:
    votes, work = describe_default(open_bundle(both_bundle).manifest).split("; ")
    assert (
        votes == describe_default(open_bundle(demo_bundle).manifest) == "catp keeps 16 of 32 query tokens at ratio 0.5"
    )
    assert work == "tome leaves 17 of 37 image tokens, 70% of the encoder's work"
    only = describe_default(open_bundle(pruned_bundle).manifest, positions=True)
    assert re.fullmatch(r"madtp leaves \d+ of 145 image tokens, 60% of the encoder's work", only)
    by_mass = open_bundle(both_bundle).manifest
    assert by_mass.vote is not None
    by_mass = by_mass.model_copy(update={"vote": by_mass.vote.model_copy(update={"keep_mass": 0.8})})
    assert describe_default(by_mass, positions=True) == (
        f"catp keeps the query tokens with 80 % of each image's votes, original positions; {work}"
    )
