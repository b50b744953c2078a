"""Metrics in Prometheus' text format (https://prometheus.io/docs/instrumenting/exposition_formats/)."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper ends of a histogram's buckets."""

Labels = tuple[tuple[str, str], ...]


@dataclass
class _Family:
    """One metric.

    Args:
        kind: counter, gauge or histogram.
    """

    help: str
    kind: str
    values: dict[Labels, float] = field(default_factory=dict)
    read: dict[Labels, Callable[[], float]] = field(default_factory=dict)
    buckets: dict[Labels, list[int]] = field(default_factory=dict)


class Metrics:
    """All metrics of a server. For several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._families: dict[str, _Family] = {
            name: _Family(help, kind)
            for kind, described in (("counter", _COUNTERS), ("gauge", _GAUGES), ("histogram", _HISTOGRAMS))
            for name, help in described.items()
        }

    def count(self, name: str, by: float = 1, **labels: str) -> None:
        """Add to a counter."""
        key = _key(labels)
        with self._lock:
            values = self._families[name].values
            values[key] = values.get(key, 0) + by

    def observe(self, name: str, seconds: float, **labels: str) -> None:
        """Add to a histogram."""
        key = _key(labels)
        with self._lock:
            family = self._families[name]
            counts = family.buckets.setdefault(key, [0] * (len(SECONDS) + 1))
            counts[bisect_left(SECONDS, seconds)] += 1
            family.values[key] = family.values.get(key, 0) + seconds

    def gauge(self, name: str, read: Callable[[], float], **labels: str) -> None:
        """Have a gauge read whenever somebody asks."""
        with self._lock:
            self._families[name].read[_key(labels)] = read

    def text(self) -> str:
        with self._lock:
            return "".join(f"{line}\n" for line in self._lines())

    def _lines(self) -> Iterator[str]:
        for name, family in self._families.items():
            yield f"# HELP {name} {family.help}"
            yield f"# TYPE {name} {family.kind}"
            if family.kind != "histogram":
                found = {**family.values, **{key: read() for key, read in family.read.items()}}
                yield from (f"{name}{_text(key)} {value:g}" for key, value in found.items())
                continue
            for key, counts in family.buckets.items():
                total = 0
                for end, count in zip((*SECONDS, float("inf")), counts):
                    total += count
                    le = "+Inf" if end == float("inf") else f"{end:g}"
                    yield f"{name}_bucket{_text((*key, ('le', le)))} {total}"
                yield f"{name}_sum{_text(key)} {family.values[key]:.9g}"
                yield f"{name}_count{_text(key)} {total}"


def _key(labels: dict[str, str]) -> Labels:
    return tuple(sorted(labels.items()))


def _text(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


_COUNTERS = {
    "catp_requests_total": "Requests that were answered or refused, by model, route and outcome.",
    "catp_rejections_total": "Requests refused before any work, by reason.",
    "catp_cancellations_total": "Requests whose client went away.",
    "catp_prompt_tokens_total": "Tokens read: kept image tokens and text.",
    "catp_generated_tokens_total": "Tokens generated.",
    "catp_image_tokens_total": "Image tokens, by what became of them: kept or dropped.",
    "catp_image_cache_requests_total": "Pictures looked up in the cache, by result: hit or miss.",
    "catp_decode_steps_total": "Steps of all rows under way together.",
    "catp_step_rows_total": "Rows of those steps: divided by the steps, how many answers shared one.",
}
_GAUGES = {
    "catp_requests_running": "Requests that have a row.",
    "catp_requests_waiting": "Requests that wait for one.",
    "catp_rows": "Rows there are.",
    "catp_image_cache_bytes": "Bytes in the cache of pictures.",
    "catp_image_cache_entries": "Pictures in the cache.",
    "catp_model_ready": "1 where the model answers.",
    "catp_draining": "1 where the server has been told to stop.",
}
_HISTOGRAMS = {
    "catp_time_in_queue_seconds": "From a request's acceptance to its row.",
    "catp_time_to_first_token_seconds": "From a request's acceptance to its first token.",
    "catp_time_between_tokens_seconds": "Between two tokens of an answer.",
    "catp_request_seconds": "From a request's acceptance to its last token.",
    "catp_stage_seconds": "Work by stage: preprocess, image (encoder and vote), prefill, step.",
}
