"""Metrics of replicas stay apart in one text that Prometheus' own parser reads."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from catp.runtime.cluster.exposition import merge
from catp.runtime.server.metrics import Metrics


def replica(requests: int) -> str:
    metrics = Metrics()
    for _ in range(requests):
        metrics.count("catp_requests_total", model='a "b" {c}', outcome="ok")
        metrics.observe("catp_request_seconds", 0.2, model="m")
    metrics.gauge("catp_draining", lambda: False)
    return metrics.text()


def test_every_sample_says_whose_it_is() -> None:
    families = {f.name: f for f in text_string_to_metric_families(merge({"one": replica(2), "two": replica(3)}))}
    (one, two) = families["catp_requests"].samples
    assert one.labels == {"model": 'a "b" {c}', "outcome": "ok", "replica": "one"} and one.value == 2
    assert two.labels["replica"] == "two" and two.value == 3
    counts = [s for s in families["catp_request_seconds"].samples if s.name == "catp_request_seconds_count"]
    assert [(s.labels["replica"], s.value) for s in counts] == [("one", 2), ("two", 3)]
    assert [s.labels for s in families["catp_draining"].samples] == [{"replica": "one"}, {"replica": "two"}]
    assert families["catp_request_seconds"].type == "histogram"


def test_a_family_is_described_once() -> None:
    merged = merge({"one": replica(1), "two": replica(1)}).splitlines()
    described = [line for line in merged if line.startswith("#")]
    assert len(described) == len(set(described)) == len([s for s in replica(1).splitlines() if s.startswith("#")])


@pytest.mark.parametrize("texts", [{}, {"one": ""}])
def test_no_replicas_have_no_metrics(texts: dict[str, str]) -> None:
    assert merge(texts) == ""
