"""One half chooses, the other confirms: no image is in both."""

from pathlib import Path

from catp.calibration.data.dataset import VqaExample
from catp.calibration.data.halves import half


def test_halves_share_no_image() -> None:
    asked = [VqaExample(str(i), Path("a"), "?", ("a",), "x", str(i // 4)) for i in range(400)]
    search, confirmation = list(half(asked, 3, "search")), list(half(asked, 3, "confirmation"))
    assert len(search) + len(confirmation) == 400 and 120 < len(search) < 280
    assert not {q.image_key for q in search} & {q.image_key for q in confirmation}
    assert [q.id for q in half(asked, 4, "search")] != [q.id for q in search]
