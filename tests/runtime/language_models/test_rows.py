"""Where beams stay in a cache."""

import numpy as np
import pytest

from catp.runtime.language_models.rows import place


@pytest.mark.parametrize("seed", range(20))
def test_every_beam_finds_its_past_where_it_is_placed(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cache = rng.integers(1000, size=8)  # what each place holds
    sources = np.concatenate([rng.integers(0, 4, 4), rng.integers(4, 8, 4)])  # two prompts of four beams
    wanted = cache[sources]
    places, copied, written = place(sources)
    assert not set(copied) & set(written) and len(set(written)) == len(written)
    assert sorted(places) == list(range(8)) and (places[:4] < 4).all()
    cache[written] = cache[copied]
    assert (cache[places] == wanted).all()
    assert len(copied) == 8 - len(set(sources))  # no less would do


def test_beams_that_only_change_places_are_not_copied() -> None:
    places, copied, _ = place(np.array([2, 0, 1]))
    assert places.tolist() == [2, 0, 1] and not len(copied)
