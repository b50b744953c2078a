"""Costs and gains of serving, part by part: `python tests/benchmarks/serving_costs.py`.

- HTTP: the first text and the gap between texts of `catp-serve` beside those of `Pipeline.stream`, demo model, each
  round a new picture, one client: the standard library's, and httpx, whose own time counts as well.
- The image cache: the time to the first text that a second question about a picture saves, in terms of vision encoder
  and Q-Former, on the fp32 bundle of middle size that `mid_size.py` makes.
- Rows that join and leave beside static batches of the same width, on that bundle's language model: Poisson arrivals,
  answers of geometric length, the 95th percentile of the time to the first token at each rate of arrivals.

Nothing else should run meanwhile. The report is kept as JSON in tests/benchmarks/records/; `--record FILE` only prints
its tables.
"""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import numpy as np
import typer
from mid_size import ROOT
from PIL import Image
from pydantic import BaseModel, ConfigDict

from catp.calibration.benchmark.load.client import PATH, Sample, ask
from catp.calibration.benchmark.load.targets import Target, started
from catp.calibration.benchmark.load.workload import Workload
from catp.calibration.benchmark.machine import Machine, describe_machine, load_average
from catp.calibration.benchmark.timing.intervals import MedianDifference, Ratio, median_difference, paired_ratio
from catp.runtime import Pipeline
from catp.runtime.generation.loop import generate_in_steps
from catp.runtime.generation.together import Together
from catp.runtime.image_sides.query_tokens import Pruned, Seen
from catp.runtime.providers.base import to_host
from catp.runtime.questions import Wishes

RECORD = ROOT / "tests" / "benchmarks" / "records" / "serving-costs.json"
TOKENS = 16
WIDTH = 8
"""Rows of the server, and of a static batch."""
MEAN_LENGTH, LONGEST = 16, 64


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Arrivals(_Strict):
    """Both ways to share a language model, under the same arrivals."""

    rate: float
    slots_first_ms: float  # 95th percentile of the time to the first token
    static_first_ms: float


class Http(_Strict):
    """Milliseconds on top of `Pipeline.stream`."""

    client: str
    first_ms: MedianDifference
    gap_ms: MedianDifference


class Report(_Strict):
    created_on: Machine
    load_average_before: float | None
    rounds: int
    http: tuple[Http, ...]
    saved_by_cache: Ratio  # of vision encoder and Q-Former
    arrivals: tuple[Arrivals, ...]
    requests: int  # at each rate


# HTTP, and the cache.


@contextmanager
def client_of(target: Target) -> Iterator[Callable[[bytes], Sample]]:
    """Requests over one connection, as a client keeps it."""
    with asyncio.Runner() as runner:
        client = target.client(60)

        def send(body: bytes) -> Sample:
            found = runner.run(ask(client, body))
            assert found.failure is None, found.failure
            return found

        yield send
        runner.run(client.aclose())


class PlainClient:
    """The least that a client does: the standard library's connection, read line by line."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        assert address.hostname is not None
        self._connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60)

    def send(self, body: bytes) -> list[float]:
        """Seconds from the request to each piece of text."""
        began, pieces = time.perf_counter(), []
        self._connection.request("POST", PATH, body, {"content-type": "application/json"})
        response = self._connection.getresponse()
        while line := response.readline():
            arrived = time.perf_counter()
            if line.startswith(b"data: {"):
                choices = json.loads(line[6:])["choices"]
                if choices and choices[0]["delta"].get("content"):
                    pieces.append(arrived - began)
        assert response.status == 200 and pieces, response.status
        return pieces


def http_costs(bundle: Path, rounds: int) -> tuple[Http, ...]:
    """Milliseconds that HTTP adds to `Pipeline.stream`, by two clients."""
    pipeline = Pipeline.load(bundle)
    workload = Workload("what is in the bottom right?", TOKENS, pipeline.manifest.image.width, 0)
    # The usual answers are shorter than what is measured.
    asked = Workload(workload.prompt, TOKENS, workload.image_size, 0, {"min_new_tokens": TOKENS})

    def stream(number: int) -> list[float]:
        picture = Image.open(io.BytesIO(workload.picture(number)))
        began = time.perf_counter()
        answer = pipeline.stream(
            picture, f"Question: {workload.prompt} Answer:", max_new_tokens=TOKENS, min_new_tokens=TOKENS
        )
        return [time.perf_counter() - began for _ in answer]

    with started(bundle, "demo", "") as target, client_of(target) as send:
        plain = PlainClient(target.url)

        def by_httpx(number: int) -> list[float]:
            found = send(asked.body(target.model, number))
            return [piece - found.began for piece in found.pieces]

        ways = {
            "http.client": lambda number: plain.send(asked.body(target.model, number)),
            "httpx": by_httpx,
            "none": stream,
        }
        firsts: dict[str, list[float]] = {name: [] for name in ways}
        gaps: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(rounds + 2):
            # Each sees a picture for the first time, and none always comes after the same one.
            for place, name in enumerate(sorted(ways, key=lambda name: (list(ways).index(name) + turn) % len(ways))):
                pieces = ways[name](turn * len(ways) + place)
                if turn >= 2:  # the first ones warm up
                    firsts[name].append(1e3 * pieces[0])
                    gaps[name].append(1e3 * float(np.median(np.diff(pieces))))
    return tuple(
        Http(
            client=name,
            first_ms=median_difference(firsts[name], firsts["none"], 0),
            gap_ms=median_difference(gaps[name], gaps["none"], 0),
        )
        for name in ways
        if name != "none"
    )


def cache_share(bundle: Path, rounds: int) -> Ratio:
    """Share of vision encoder's and Q-Former's time that a second question about a picture saves."""
    pipeline = Pipeline.load(bundle)
    workload = Workload("what is in the picture?", 2, pipeline.manifest.image.width, 0, {"min_new_tokens": 2})
    saved: list[float] = []
    images: list[float] = []
    with started(bundle, "fp32", "") as target, client_of(target) as send:
        for number in range(rounds + 1):
            body = workload.body(target.model, number)
            new, again = send(body), send(body)
            pixels = pipeline.preprocess([Image.open(io.BytesIO(workload.picture(number)))])
            began = time.perf_counter()
            to_host(pipeline.prune(pipeline.encode(pixels), pipeline.num_kept()).kept_embeds)
            image = 1e3 * (time.perf_counter() - began)
            if number:
                saved.append(new.total_ms - again.total_ms)
                images.append(image)
    return paired_ratio(saved, images, 0)


# Rows that join and leave, and static batches.


class Trace:
    """Requests about pictures that were seen before: when each comes, and how long its answer is."""

    def __init__(self, pipeline: Pipeline, rate: float, requests: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.pipeline = pipeline
        self.arrivals = np.cumsum(rng.exponential(1 / rate, requests))
        self.lengths = np.minimum(rng.geometric(1 / MEAN_LENGTH, requests), LONGEST)
        image = pipeline.manifest.image
        pixels = rng.standard_normal((WIDTH, 3, image.height, image.width), np.float32)
        self.seen: list[Seen] = [pipeline.remember(pipeline.encode(pixels[i : i + 1])) for i in range(WIDTH)]
        self.ids = pipeline.tokenize("Question: what is in the picture? Answer:")

    def wishes(self, length: int) -> Wishes:
        settings = self.pipeline.manifest.generation.override(num_beams=1, min_new_tokens=length)
        return Wishes(settings, None, None, None, length)

    def replay(self, serve: Callable[[deque[tuple[int, float]], threading.Event, np.ndarray], None]) -> np.ndarray:
        """Milliseconds from each arrival to the first token of its answer."""
        queue: deque[tuple[int, float]] = deque()
        ended, first = threading.Event(), np.zeros(len(self.arrivals))
        start = time.monotonic() + 0.1

        def arrive() -> None:
            for number, at in enumerate(self.arrivals):
                time.sleep(max(0.0, start + at - time.monotonic()))
                queue.append((number, start + at))
            ended.set()

        thread = threading.Thread(target=arrive)
        thread.start()
        serve(queue, ended, first)
        thread.join()
        return 1e3 * first

    def slots(self, queue: deque[tuple[int, float]], ended: threading.Event, first: np.ndarray) -> None:
        """As `ModelEngine` does it: one prompt is read between two steps."""
        together = Together(self.pipeline.open_seats(WIDTH, 128))
        while not (ended.is_set() and not queue and not together.running):
            if queue and not together.full:
                number, came = queue.popleft()
                wishes = self.wishes(int(self.lengths[number]))
                pruned = self.pipeline.keep(self.seen[number % WIDTH], wishes)
                together.join(self.pipeline.request(pruned, [self.ids], wishes.max_new_tokens, None, wishes.settings))
                first[number] = time.monotonic() - came
            if together.running:
                together.step()
            elif not queue:
                time.sleep(0.001)

    def static(self, queue: deque[tuple[int, float]], ended: threading.Event, first: np.ndarray) -> None:
        """Whoever waits when a batch has ended is the next one, which lasts as long as its longest answer."""
        while not (ended.is_set() and not queue):
            if not queue:
                time.sleep(0.001)
                continue
            batch = [queue.popleft() for _ in range(min(WIDTH, len(queue)))]
            longest = self.wishes(int(max(self.lengths[number] for number, _ in batch)))
            kept = [self.pipeline.keep(self.seen[number % WIDTH], longest) for number, _ in batch]
            pruned = Pruned(
                np.concatenate([to_host(one.kept_indices) for one in kept]),
                np.concatenate([to_host(one.kept_embeds) for one in kept]),
            )
            ids = [self.ids] * len(batch)
            request = self.pipeline.request(pruned, ids, longest.max_new_tokens, None, longest.settings)
            for step, _ in enumerate(generate_in_steps(self.pipeline.language_model, request)):
                if step == 0:
                    for number, came in batch:
                        first[number] = time.monotonic() - came


def compare_arrivals(bundle: Path, rates: Sequence[float], requests: int, rounds: int) -> tuple[Arrivals, ...]:
    """95th percentiles at each rate, both ways in every round."""
    pipeline = Pipeline.load(bundle)
    found = {rate: ([], []) for rate in rates}  # type: ignore[var-annotated]
    Trace(pipeline, 100, 2 * WIDTH, 1).replay(Trace(pipeline, 100, 2 * WIDTH, 1).slots)  # warms up
    for seed in range(rounds):
        for rate in rates:
            trace = Trace(pipeline, rate, requests, seed)
            for ways, serve in zip(found[rate], (trace.slots, trace.static)):
                ways.append(trace.replay(serve))
    return tuple(
        Arrivals(
            rate=rate,
            slots_first_ms=float(np.quantile(np.concatenate(slots), 0.95)),
            static_first_ms=float(np.quantile(np.concatenate(static), 0.95)),
        )
        for rate, (slots, static) in found.items()
    )


def tables(report: Report) -> list[str]:
    """Markdown: what HTTP adds, what the cache saves, then the arrivals."""

    def cell(found: MedianDifference | Ratio, unit: str, factor: float = 1.0) -> str:
        low, high = (factor * value for value in found.interval_95 or (found.median, found.median))
        return f"{factor * found.median:.2f}{unit} ({low:.2f} to {high:.2f})"

    rows = ["| client | HTTP adds to the first text | between texts |", "|---" * 3 + "|"]
    rows += [f"| {one.client} | {cell(one.first_ms, ' ms')} | {cell(one.gap_ms, ' ms')} |" for one in report.http]
    rows += [
        "",
        "| a second question saves, of vision encoder and Q-Former |",
        "|---|",
        f"| {cell(report.saved_by_cache, ' %', 100)} |",
        "",
        "| requests a second | rows that join and leave, ms | static batches, ms |",
        "|---" * 3 + "|",
    ]
    rows += [f"| {one.rate:g} | {one.slots_first_ms:.0f} | {one.static_first_ms:.0f} |" for one in report.arrivals]
    return rows


def main(
    folder: Annotated[Path, typer.Option(help="What mid_size.py made.")] = Path("build/mid-size"),
    demo: Annotated[Path, typer.Option(help="A bundle of the demo model.")] = Path("build/demo-bundle"),
    rounds: Annotated[int, typer.Option(min=6)] = 60,
    rates: Annotated[str, typer.Option(help="Arrivals a second, separated by commas.")] = "1,2,3,4,5",
    requests: Annotated[int, typer.Option(min=8, help="At each rate, in each of two rounds.")] = 30,
    output: Annotated[Path, typer.Option("-o", "--output", help="The report.")] = RECORD,
    record: Annotated[Path | None, typer.Option(help="Print the tables of this report, and time nothing.")] = None,
) -> None:
    """Measure what HTTP costs, and what the cache and shared steps save."""
    if record is None:
        load_before = load_average()
        costs = http_costs(demo, rounds)
        saved = cache_share(folder / "fp32" / "bundle", rounds)
        found = compare_arrivals(folder / "fp32" / "bundle", [float(rate) for rate in rates.split(",")], requests, 2)
        report = Report(
            created_on=describe_machine(),
            load_average_before=load_before,
            rounds=rounds,
            http=costs,
            saved_by_cache=saved,
            arrivals=found,
            requests=2 * requests,
        )
        output.write_text(report.model_dump_json(indent=1) + "\n")
        record = output
    print("\n".join(tables(Report.model_validate_json(record.read_bytes()))))


if __name__ == "__main__":
    typer.run(main)
