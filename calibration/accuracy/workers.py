"""Workers of an evaluation: processes of a Ray cluster, each with the bundle, that answer batches of questions.

Actors are started and restarted by Ray (https://docs.ray.io/en/latest/ray-core/fault_tolerance/actors.html): what a
worker that died had not answered is asked again. Answers come in the order of the questions, so that a run with
workers writes the same file of predictions as one without.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catp.calibration.accuracy.answering import Answerer
from catp.calibration.accuracy.asking import Asking
from catp.calibration.accuracy.judging import PairAnswerer
from catp.calibration.accuracy.predictions import Prediction
from catp.calibration.accuracy.settings import Setting
from catp.calibration.data.dataset import VqaExample
from catp.calibration.data.fitting import judges_pairs
from catp.calibration.data.metrics import Metric
from catp.runtime.bundle.folder import Bundle, open_bundle
from catp.runtime.bundle.manifest import MANIFEST_NAME, Manifest
from catp.runtime.errors import CatpError, UsageError
from catp.runtime.files import sha256
from catp.runtime.pipeline import Pipeline
from catp.runtime.system.optional_imports import optional_import

AHEAD = 2
"""Batches that a worker has, at most: one that it answers, one that waits for it."""
MOST_AHEAD = 8
"""Batches a worker that are answered while an earlier one is not, at most: a kill loses them."""
_KNOCK_SECONDS = 10.0
RESTARTS = 3
"""Times that a worker which died is started again, and that a batch is asked again."""


@dataclass(frozen=True)
class Work:
    """All that decides an answer, but the question and the bundle."""

    settings: Sequence[Setting]
    metric: Metric
    seed: int
    batch_size: int
    asking: Asking


def make_answerer(pipeline: Pipeline, work: Work) -> Answerer | PairAnswerer:
    """The answerer of a bundle's kind."""
    if judges_pairs(pipeline.manifest):
        return PairAnswerer(pipeline, work.metric)
    return Answerer(pipeline, work.settings, work.metric, work.seed, work.batch_size, work.asking)


class Worker:
    """A process with a bundle of its own; Ray makes it, also in place of one that died.

    Args:
        bundle: a folder of this machine.
        identity: sha256 of the manifest that it must have.
    """

    def __init__(self, bundle: str, identity: str, provider: str, engines: str | None, threads: int | None) -> None:
        self._opening = (bundle, provider, threads, engines)
        self._identity = identity
        self._pipeline: Pipeline | None = None
        self._answerer: tuple[Work, Answerer | PairAnswerer] | None = None

    def open(self) -> str:
        """Load the bundle; the name of the provider.

        Raises:
            CatpError: it can't be loaded here, or is another one.
        """
        if self._pipeline is None:
            bundle, provider, threads, engines = self._opening
            manifest = Path(bundle) / MANIFEST_NAME
            with _said_here():
                if manifest.is_file() and sha256(manifest) != self._identity:
                    raise UsageError(f"{bundle} is another bundle; give a folder that all machines have alike")
                self._pipeline = Pipeline.load(bundle, provider, threads=threads, engines=engines)
        return self._pipeline.provider.name

    def answer(self, work: Work, batch: Sequence[VqaExample]) -> list[Prediction]:
        """See `Answerer.answer`."""
        self.open()
        assert self._pipeline is not None
        if self._answerer is None or self._answerer[0] != work:
            self._answerer = (work, make_answerer(self._pipeline, work))
        with _said_here():
            return self._answerer[1].answer(batch)


@contextmanager
def _said_here() -> Iterator[None]:
    """Errors with the name of this machine, of types that any process can read."""
    try:
        yield
    except CatpError as error:
        kind = UsageError if error.exit_code == UsageError.exit_code else CatpError
        raise kind(f"{error} (worker on {socket.gethostname()})") from None


class Workers:
    """The workers of a bundle, in place of a pipeline.

    Args:
        actors: Ray's handles of `Worker`s.
        provider: its name, as every worker has it.
    """

    def __init__(self, bundle: Bundle, actors: Sequence[Any], provider: str) -> None:
        self.bundle = bundle
        self.provider = provider
        self._actors = actors

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    def answers(self, work: Work, batches: Iterable[Sequence[VqaExample]]) -> Iterator[list[Prediction]]:
        """The predictions of each batch, in the order of the batches.

        Raises:
            CatpError: as `Answerer.answer`; or a worker died more often than it is started again.
        """
        import ray

        shared, remaining = ray.put(work), iter(batches)
        busy = dict.fromkeys(self._actors, 0)
        order: deque[Any] = deque()  # what was asked, in the order of the batches
        asked_of: dict[Any, Any] = {}  # what is not answered yet

        def ask_more() -> None:
            while len(order) < MOST_AHEAD * len(busy):
                actor = min(busy, key=lambda one: busy[one])
                if busy[actor] >= AHEAD or (batch := next(remaining, None)) is None:
                    return
                result = actor.answer.remote(shared, batch)
                order.append(result)
                asked_of[result] = actor
                busy[actor] += 1

        ask_more()
        while order:
            if order[0] in asked_of:
                # Whoever is done gets more, also where an earlier batch is on its way still.
                (answered,), _ = ray.wait(list(asked_of))
                busy[asked_of.pop(answered)] -= 1
                ask_more()
            else:
                yield _get(order.popleft())
                ask_more()


@contextmanager
def open_workers(
    folder: Path, cluster: str, count: int | None, provider: str, engines: str | None
) -> Iterator[Workers]:
    """Workers on a cluster that runs; they end with the block.

    Args:
        folder: of the bundle, under the same path on every machine.
        cluster: its address, such as 10.0.0.1:6379; "auto": the one that this machine belongs to.
        count: of workers, which share the CPUs of the cluster evenly; None: one for each machine.

    Raises:
        UsageError: Ray is not installed, there is no such cluster, or it has fewer CPUs than workers.
        CatpError: a worker can't load the bundle.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # which Ray reads when it is imported
    ray, missing = optional_import("ray")
    if ray is None:
        raise UsageError(f"--cluster: ray {missing}; install this project's extra: pip install '.[cluster]'")
    bundle = open_bundle(folder)
    try:
        if cluster != "auto":
            _knock(cluster)
        ray.init(address=cluster, log_to_driver=False, logging_level="ERROR")
    except (OSError, ValueError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UsageError(
            f"--cluster {cluster}: no cluster can be reached there ({reason[:200]}); start one with ray start --head, "
            "and give auto on one of its machines, or its address, such as 10.0.0.1:6379"
        ) from None
    actors = []
    try:
        cpus = int(ray.cluster_resources().get("CPU", 0))
        machines = sum(1 for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1)
        wanted = machines if count is None else count
        if not 1 <= wanted <= cpus:
            raise UsageError(f"{wanted} workers: the cluster has {cpus} CPUs; give --workers 1 to {max(cpus, 1)}")
        threads = cpus // wanted
        remote = ray.remote(num_cpus=1, max_restarts=RESTARTS, max_task_retries=RESTARTS, scheduling_strategy="SPREAD")(
            Worker
        )
        identity = sha256(folder / MANIFEST_NAME)
        place = str(folder.resolve())
        actors = [remote.remote(place, identity, provider, engines, threads) for _ in range(wanted)]
        names = [_get(opening) for opening in [actor.open.remote() for actor in actors]]
        if len(set(names)) > 1:
            raise CatpError(f"workers execute graphs by {', '.join(sorted(set(names)))}; all of them must be alike")
        yield Workers(bundle, actors, names[0])
    finally:
        for actor in actors:
            ray.kill(actor)
        ray.shutdown()


def _knock(address: str) -> None:
    """Raises OSError where nobody listens, which Ray takes many minutes to say, or ValueError where it is none."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError("an address is HOST:PORT")
    socket.create_connection((host, int(port)), _KNOCK_SECONDS).close()


def _get(result: Any) -> Any:
    """The result of a call.

    Raises:
        CatpError: the call's own error, or a worker's end.
    """
    import ray
    from ray.exceptions import RayActorError, RayTaskError

    try:
        return ray.get(result)
    except RayTaskError as error:
        raise error.cause from None
    except RayActorError as error:
        reason = next(iter(str(error).splitlines()), "")
        raise CatpError(
            f"a worker died, {RESTARTS} times more after it was started again ({reason[:200]}); start the command anew "
            "with --predictions: it goes on where this run stopped"
        ) from None
