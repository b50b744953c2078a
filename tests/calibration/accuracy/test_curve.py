from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from catp.calibration.accuracy.curve import draw_curve
from catp.calibration.accuracy.predictions import Evaluation, Prediction
from catp.calibration.accuracy.report import make_report
from catp.runtime import Pipeline
from catp.runtime.bundle.manifest import Positions


@pytest.mark.parametrize("positions", [("original",), ("original", "compact")])
@pytest.mark.parametrize(
    "methods", [("catp",), ("catp", "coverage", "distinct", "l2-norm", "self-attention", "random")]
)
def test_it_is_a_png_that_a_page_can_hold(
    pipeline: Pipeline, tmp_path: Path, methods: tuple[str, ...], positions: tuple[Positions, ...]
) -> None:
    evaluation = Evaluation(
        bundle="00", provider="cpu", engines=None, data="VQA $v2$ [val]", metric="VQA accuracy", limit=None,
        fraction=0.1, seed=1, questions=9, digest="11", methods=methods, ratios=(0.9, 0.0, 0.5), keep_masses=(0.8,),
        positions=positions,
    )  # fmt: skip
    settings = evaluation.grid.settings()
    rng = np.random.default_rng(1)
    predictions = [
        Prediction(
            id=str(i),
            image_key=str(i),
            answer_type="other",
            answers=("x",) * len(settings),
            num_kept=tuple(32 if setting.ratio == 0 else 10 for setting in settings),
            accuracy=tuple(rng.choice([0, 0.3, 1], len(settings))),
        )
        for i in range(9)
    ]
    draw_curve(make_report(evaluation, predictions, pipeline.manifest), tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as picture:
        assert picture.format == "PNG"
        assert 600 <= picture.width <= 2400 and 400 <= picture.height <= 1200
        colors = picture.convert("RGB").getcolors(1 << 24)
    assert colors is not None and len(colors) > 100 and max(colors)[1] == (255, 255, 255)
