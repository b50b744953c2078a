"""Where beams stay in a cache when some end and others branch."""

from __future__ import annotations

import numpy as np


def place(sources: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A place for each beam, such that as little as possible is copied.

    A beam's first continuation stays where the beam is; its others take the places of beams that nothing continues. So
    no place is both read and written: copies need neither an order nor a second cache.

    Args:
        sources: int64 [R], the place in which each beam's past is.

    Returns:
        places: int64 [R], where each beam is from now on.
        copied, written: what has to be copied for that, and to which places.
    """
    places = sources.copy()
    branches = np.ones(len(sources), bool)
    branches[np.unique(sources, return_index=True)[1]] = False
    places[branches] = np.setdiff1d(np.arange(len(sources)), sources)
    return places, sources[branches], places[branches]
