"""The cache of votes: bounded by bytes, and no two pictures, bundles, questions or salts are the same to it."""

from __future__ import annotations

import numpy as np

from catp.runtime.image_sides.query_tokens import Votes
from catp.runtime.server.model.image_cache import ImageCache, key_of


def votes(number: int, size: int = 100) -> Votes:
    return Votes(np.full((1, 1, size), number, np.float32), {"token_scores": np.zeros((1, 25), np.float32)})


def test_what_nobody_asked_for_longest_goes_first() -> None:
    cache = ImageCache(3 * votes(0).nbytes + 10)
    assert votes(0).nbytes == 500
    for number in range(3):
        cache.put(bytes([number]), votes(number))
    assert cache.get(b"\0") is not None  # asked for, so 1 is the oldest
    cache.put(b"\3", votes(3))
    assert cache.get(b"\1") is None and len(cache) == 3 and cache.bytes == 1500
    found = cache.get(b"\3")
    assert found is not None and found.embeds[0, 0, 0] == 3


def test_bytes_stay_within_the_bound() -> None:
    rng, cache = np.random.default_rng(0), ImageCache(20_000)
    for number in range(500):
        cache.put(number.to_bytes(4, "big"), votes(number, int(rng.integers(1, 3000))))
        assert cache.bytes <= 20_000
        assert cache.bytes == sum(entry.nbytes for entry in cache._entries.values())
    cache.put(b"x", votes(0, 6000))  # larger than all of it
    assert cache.get(b"x") is None and len(cache) > 0


def test_an_entry_that_is_there_stays() -> None:
    cache = ImageCache(10_000)
    first = votes(1)
    cache.put(b"k", first)
    cache.put(b"k", votes(2))
    assert cache.get(b"k") is first and cache.bytes == 500


def test_keys_differ_in_everything_that_decides_a_vote() -> None:
    parts = [
        ([b"ab"], b"B", None, b""),
        ([b"a", b"b"], b"B", None, b""),  # frames
        ([b"b", b"a"], b"B", None, b""),
        ([b"ab", b""], b"B", None, b""),
        ([b"ab"], b"C", None, b""),
        ([b"ab"], b"B", "", b""),
        ([b"ab"], b"B", "where?", b""),
        ([b"ab"], b"B", None, b"salt"),
        ([b"ab"], b"Bsalt", None, b""),
    ]
    keys = {key_of(*part) for part in parts}
    assert len(keys) == len(parts) and all(len(key) == 32 for key in keys)
    assert key_of([b"ab"], b"B", None, b"") in keys
