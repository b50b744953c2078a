"""Large graphs take turns in memory, answer what they do together, and are loaded once."""

import weakref
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from catp.export.checkpoints.loading import load_checkpoint
from catp.export.demo import CHECKPOINT, samples
from catp.export.exporter import _samples
from catp.export.verification import parity, turns
from catp.export.verification.expected import compute_expected
from catp.export.verification.reference import Reference
from catp.export.voting import make_method
from catp.runtime import Pipeline
from catp.runtime.bundle.folder import Bundle, open_bundle
from catp.runtime.providers import open_provider
from catp.runtime.providers.base import Engine, Moment, Provider


class Counting:
    """A provider that knows how many of its engines are left."""

    def __init__(self, provider: Provider) -> None:
        self.name = provider.name
        self.provider = provider
        self.engines: list[weakref.ref[Engine]] = []
        self.most = 0
        self.loaded: Counter[str] = Counter()

    def engine(self, bundle: Bundle, graph: str) -> Engine:
        engine = self.provider.engine(bundle, graph)
        self.loaded[graph] += 1
        self.engines.append(weakref.ref(engine))
        self.most = max(self.most, sum(reference() is not None for reference in self.engines))
        return engine

    def synchronize(self) -> None:
        self.provider.synchronize()

    def moment(self) -> Moment:
        return self.provider.moment()


def test_one_graph_at_a_time(demo_bundle: Path, pipeline: Pipeline) -> None:
    bundle = open_bundle(demo_bundle)
    counting = Counting(open_provider("cpu"))
    one_by_one = Pipeline(bundle, turns.Turns(counting))
    images, prompts = [s.image for s in samples()], [s.prompt for s in samples()]
    for given in (slice(1), slice(None), slice(1)):
        answers = one_by_one.generate(images[given], prompts[given])
        wanted = pipeline.generate(images[given], prompts[given])
        assert [(a.token_ids, a.kept_indices) for a in answers] == [(a.token_ids, a.kept_indices) for a in wanted]
    # The last questions were asked before: what comes before the language model, which stayed, is remembered.
    assert counting.most == 1 and len(counting.engines) == 6


def test_other_inputs_are_other_calls(demo_bundle: Path) -> None:
    given = turns.Turns(open_provider("cpu")).engine(open_bundle(demo_bundle), "vision_encoder")
    pixels = np.zeros((1, 3, 96, 96), np.float32)
    step = given.bind({"pixel_values": pixels})
    first = step.run()["image_embeds"].numpy()
    step.update("pixel_values", pixels + 1)
    second = step.run()["image_embeds"].numpy()
    assert np.abs(first - second).max() > 0.1
    np.testing.assert_array_equal(given.bind({"pixel_values": pixels + 1}).run()["image_embeds"].numpy(), second)


@pytest.mark.parametrize(
    ("name", "twice"),
    [
        ("demo", {}),
        # What PyTorch's embeddings are voted for comes after the text encoder.
        pytest.param("t5", {"qformer_voting": 2}, marks=pytest.mark.heavy),
        pytest.param("instructblip", {}, marks=pytest.mark.heavy),
        pytest.param("video_t5", {"qformer_voting": 2}, marks=pytest.mark.heavy),
        pytest.param("caption", {}, marks=pytest.mark.heavy),
    ],
)
def test_a_check_of_parity_loads_each_graph_once(
    name: str, twice: dict[str, int], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = CHECKPOINT if name == "demo" else request.getfixturevalue(f"{name}_checkpoint")
    bundle, checkpoint = open_bundle(request.getfixturevalue(f"{name}_bundle")), load_checkpoint(str(folder))
    expected = compute_expected(
        Reference(checkpoint), _samples(checkpoint.family), make_method("catp", {}), 0.5, torch.float32, ()
    )
    together = parity.check_parity(bundle, expected)
    counting = Counting(open_provider("cpu"))
    monkeypatch.setattr(parity, "open_provider", lambda _: counting)
    monkeypatch.setattr(turns, "TOGETHER", 1000)
    assert parity.check_parity(bundle, expected) == together
    assert counting.loaded == {graph: twice.get(graph, 1) for graph in bundle.manifest.graphs} and counting.most == 1
