"""Large graphs take turns in memory, and answer what they do together."""

import weakref
from pathlib import Path

import pytest

from catp.export.demo import samples
from catp.export.verification import turns
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

    def engine(self, bundle: Bundle, graph: str) -> Engine:
        engine = self.provider.engine(bundle, graph)
        self.engines.append(weakref.ref(engine))
        self.most = max(self.most, sum(reference() is not None for reference in self.engines))
        return engine

    def synchronize(self) -> None:
        self.provider.synchronize()

    def moment(self) -> Moment:
        return self.provider.moment()


def test_one_graph_at_a_time(demo_bundle: Path, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = open_bundle(demo_bundle)
    counting = Counting(open_provider("cpu"))
    assert turns.taking_turns(counting, bundle) is counting  # small graphs stay together
    monkeypatch.setattr(turns, "TOGETHER", 1000)
    one_by_one = Pipeline(bundle, turns.taking_turns(counting, bundle))
    images, prompts = [s.image for s in samples()], [s.prompt for s in samples()]
    for given in (slice(1), slice(None)):
        answers = one_by_one.generate(images[given], prompts[given])
        wanted = pipeline.generate(images[given], prompts[given])
        assert [(a.token_ids, a.kept_indices) for a in answers] == [(a.token_ids, a.kept_indices) for a in wanted]
    assert counting.most == 1 and len(counting.engines) == 6
