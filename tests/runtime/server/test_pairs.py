"""BLIP and CLIP over HTTP: scores and vectors of Pipeline.match, and no name of what the model lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from servers import NAME, SAMPLES, data_url, running

from catp.runtime import Pipeline

TEXTS = ["red", "what is in the bottom right?", "is it green?"]


@pytest.mark.parametrize("bundle", ["blip_retrieval_bundle", "clip_bundle"])
def test_scores_and_vectors_are_those_of_matching(bundle: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(bundle)
    pipeline = Pipeline.load(folder)
    has = ["probability", "similarity"] if pipeline.matching.has_head else ["similarity"]
    wanted = pipeline.match([SAMPLES[0].image] * 3, TEXTS)
    inputs = [
        {"name": "image", "shape": [1], "datatype": "BYTES", "data": [data_url(SAMPLES[0].image)]},
        {"name": "text", "shape": [3], "datatype": "BYTES", "data": TEXTS},
    ]
    with running(pipeline) as server:
        described = httpx.get(f"{server.address}/v2/models/{NAME}").json()
        assert [tensor["name"] for tensor in described["outputs"]] == has
        address = f"{server.address}/v2/models/{NAME}/infer"
        found: Any = httpx.post(address, json={"inputs": inputs}).json()
        outputs = {tensor["name"]: tensor["data"] for tensor in found["outputs"]}
        assert list(outputs) == has
        for name, values in outputs.items():
            assert values == pytest.approx([getattr(match, name) for match in wanted], abs=1e-6)
        asked = {"inputs": inputs, "outputs": [{"name": "probability"}]}
        assert httpx.post(address, json=asked).status_code == (200 if len(has) == 2 else 400)
        body = {"model": NAME, "input": [TEXTS[1], {"image": data_url(SAMPLES[0].image)}]}
        found = httpx.post(f"{server.address}/v1/embeddings", json=body).json()
        text, picture = (np.array(item["embedding"]) for item in found["data"])
        assert text @ picture == pytest.approx(wanted[1].similarity, abs=1e-6)
        assert found["data"][1]["catp"]["num_kept"] == len(wanted[1].kept_indices) == 50
        refused = httpx.post(f"{server.address}/v1/embeddings", json={**body, "ratio": 0.5})
        assert refused.status_code == 400 and "no query tokens to leave out" in refused.text
