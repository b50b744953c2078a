"""Loads: clients that wait for their answers (closed loop), and arrivals that wait for nobody (open loop)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import httpx
import numpy as np

from catp.calibration.benchmark.load.client import Sample, ask


async def closed_loop(client: httpx.AsyncClient, bodies: Sequence[bytes], clients: int) -> list[Sample]:
    """Each of so many clients sends its next request when its last one is answered.

    Args:
        bodies: of all requests; client n takes every `clients`-th from the n-th on, so that all have equally many
            where their number is a multiple.
    """

    async def one(first: int) -> list[Sample]:
        return [await ask(client, body) for body in bodies[first::clients]]

    return [sample for samples in await asyncio.gather(*map(one, range(clients))) for sample in samples]


async def open_loop(
    client: httpx.AsyncClient, bodies: Sequence[bytes], rate: float, rng: np.random.Generator
) -> list[Sample]:
    """A request at each arrival of a Poisson process.

    A server that falls behind gets no rest here, as it would from clients that wait.

    Args:
        rate: arrivals a second.
    """
    # The first one comes at once: all that is measured lies between it and the last answer.
    arrivals = np.concatenate([[0.0], np.cumsum(rng.exponential(1 / rate, len(bodies) - 1))])
    loop = asyncio.get_running_loop()
    start = loop.time()

    async def one(body: bytes, at: float) -> Sample:
        await asyncio.sleep(max(0.0, start + at - loop.time()))
        return await ask(client, body)

    return list(await asyncio.gather(*map(one, bodies, arrivals)))
