"""Rounds of loads: every setting once in each, in an order drawn anew."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np

from catp.calibration.benchmark.load.client import Sample
from catp.calibration.benchmark.load.loops import closed_loop, open_loop
from catp.calibration.benchmark.load.report import Setting
from catp.calibration.benchmark.load.targets import Target
from catp.calibration.benchmark.load.workload import POOL, Pictures, Workload, numbers
from catp.runtime.errors import CatpError

ARRIVALS_OF = 8
"""Clients whose requests an open loop sends as many of."""


def measure(
    targets: Sequence[Target],
    settings: Sequence[Setting],
    workload: Workload,
    requests: int,
    rounds: int,
    timeout: float,
    advance: Callable[[], None] = lambda: None,
    fields: Mapping[str, Mapping[str, Any]] = {},
) -> dict[Setting, list[list[Sample]]]:
    """Samples by setting and round.

    Before the first round every server is asked about each of the pictures that are asked about again, so that those
    are in its cache if it has one, and that nothing is run for the first time.

    Args:
        requests: of each client.
        timeout: seconds without a byte after which a request has failed.
        advance: called after each setting of each round.
        fields: of bodies, by the name of a server that has others than the workload's.

    Raises:
        CatpError: a server does not answer one of the first requests.
    """
    by_name = {target.name: target for target in targets}
    worded = {name: replace(workload, fields=fields.get(name, workload.fields)) for name in by_name}
    rng = np.random.default_rng(workload.seed)
    pictures: Mapping[str, dict[Pictures, Iterator[int]]] = {
        name: {"cached": numbers("cached"), "new": numbers("new")} for name in by_name
    }
    samples: dict[Setting, list[list[Sample]]] = {setting: [] for setting in settings}

    async def run() -> None:
        for target in targets:
            async with target.client(timeout) as client:
                found = await closed_loop(client, [worded[target.name].body(target.model, n) for n in range(POOL)], 1)
            if failed := next((sample.failure for sample in found if sample.failure is not None), None):
                raise CatpError(f"{target.name}: {target.url} does not answer a question about a picture ({failed})")
        for _ in range(rounds):
            for place in rng.permutation(len(settings)):
                setting = settings[place]
                target = by_name[setting.server]
                count = requests * (setting.clients or ARRIVALS_OF)
                asked = islice(pictures[target.name][setting.pictures], count)
                bodies = [
                    worded[target.name].body(target.model, number) for number in asked
                ]  # made before any clock runs
                async with target.client(timeout) as client:
                    if setting.clients is not None:
                        found = await closed_loop(client, bodies, setting.clients)
                    else:
                        found = await open_loop(client, bodies, setting.rate or 1.0, rng)
                samples[setting].append(found)
                advance()

    asyncio.run(run())
    return samples
