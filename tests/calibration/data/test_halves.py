"""One half chooses, the other confirms: no image is in both."""

from catp.calibration.data.dataset import VqaExample
from catp.calibration.data.halves import half
from catp.export.demo import scenes


def test_halves_share_no_image() -> None:
    asked = [VqaExample(str(i), scenes.examples, "?", ("a",), "x", str(i // 4)) for i in range(400)]  # type: ignore[arg-type]
    search, confirmation = (list(half(asked, 3, which)) for which in ("search", "confirmation"))  # type: ignore[arg-type]
    assert len(search) + len(confirmation) == 400 and 120 < len(search) < 280
    assert not {q.image_key for q in search} & {q.image_key for q in confirmation}
    assert [q.id for q in half(asked, 4, "search")] != [q.id for q in search]
