import math

import numpy as np
import pytest

from catp.runtime import UsageError
from catp.runtime.pruning import check_ratio, num_kept


@pytest.mark.parametrize(
    ("ratio", "queries", "kept"),
    [
        (0, 32, 32),
        (0.25, 32, 24),
        (0.5, 32, 16),
        (0.75, 32, 8),
        (0.9, 32, 3),
        (0.999, 32, 1),
        (0.5, 5, 3),
        (np.float32(0.5), 32, 16),
    ],
)
def test_num_kept(ratio: float, queries: int, kept: int) -> None:
    assert num_kept(ratio, queries) == kept


@pytest.mark.parametrize("ratio", [1, 1.5, -0.1, math.nan, math.inf, "0.5"])
def test_what_is_not_a_ratio_is_refused(ratio: float) -> None:
    with pytest.raises(UsageError, match="0 <= ratio < 1"):
        check_ratio(ratio)
