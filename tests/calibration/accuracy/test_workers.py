"""Workers on two raylets answer as one process does, whatever happens to them."""

from __future__ import annotations

import json
import os
import pickle
import signal
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from raylets import CPUS, two_raylets
from servers import wait_for
from typer.testing import CliRunner

from catp.calibration.accuracy.asking import USUAL
from catp.calibration.accuracy.evaluation import evaluate
from catp.calibration.accuracy.predictions import Prediction
from catp.calibration.accuracy.report import AccuracyReport
from catp.calibration.accuracy.settings import Grid, Setting
from catp.calibration.accuracy.workers import Work, Worker, open_workers
from catp.calibration.commands.eval import app
from catp.calibration.data import open_data
from catp.calibration.data.dataset import VqaExample
from catp.runtime import Pipeline
from catp.runtime.bundle.manifest import MANIFEST_NAME
from catp.runtime.errors import CatpError, UsageError
from catp.runtime.files import sha256

MACHINES = ("127.0.0.4", "127.0.0.5")
GRID = Grid(("catp", "random"), (0.0, 0.5), ("original",))
LIMIT = 96

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="the extra `cluster` is not installed: ray is missing")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with two_raylets(MACHINES, tmp_path_factory.mktemp("cluster")) as address:
        yield address


@pytest.fixture(scope="module")
def alone(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> tuple[AccuracyReport, bytes]:
    """The report of one process, and its file of predictions."""
    path = tmp_path_factory.mktemp("alone") / "predictions.jsonl"
    return evaluate(pipeline, open_data("demo"), GRID, seed=5, limit=LIMIT, predictions=path), path.read_bytes()


def workers_of(cluster: str) -> list[dict[str, Any]]:
    from ray._private.state import actors

    return [one for one in actors().values() if one["State"] == "ALIVE" and one["ActorClassName"] == "Worker"]


@needs_ray
@pytest.mark.heavy
def test_the_report_is_that_of_one_process(
    cluster: str, demo_bundle: Path, alone: tuple[AccuracyReport, bytes], tmp_path: Path
) -> None:
    path, done = tmp_path / "predictions.jsonl", []
    with open_workers(demo_bundle, cluster, None, "cpu", None) as workers:
        assert sorted(one["Address"]["IPAddress"] for one in workers_of(cluster)) == sorted(MACHINES)
        report = evaluate(
            workers,
            open_data("demo"),
            GRID,
            seed=5,
            limit=LIMIT,
            predictions=path,
            advance=lambda count, total: done.append(count),
        )
    assert report == alone[0] and path.read_bytes() == alone[1]
    assert done == sorted(done) and done[-1] == LIMIT


@needs_ray
@pytest.mark.heavy
def test_a_worker_that_is_killed_loses_nothing(
    cluster: str, demo_bundle: Path, alone: tuple[AccuracyReport, bytes], tmp_path: Path
) -> None:
    path, killed = tmp_path / "predictions.jsonl", []
    with open_workers(demo_bundle, cluster, 3, "cpu", None) as workers:

        def kill_one(done: int, total: int) -> None:
            if done >= LIMIT // 4 and not killed:
                killed.append(workers_of(cluster)[0])
                os.kill(killed[0]["Pid"], signal.SIGKILL)

        report = evaluate(workers, open_data("demo"), GRID, seed=5, limit=LIMIT, predictions=path, advance=kill_one)
        pids = {one["Pid"] for one in workers_of(cluster)}
        wait_for(lambda: len(workers_of(cluster)) == 3, "it is not started again")
    assert killed and killed[0]["Pid"] not in pids
    assert report == alone[0] and path.read_bytes() == alone[1]


@needs_ray
@pytest.mark.heavy
def test_a_run_that_is_stopped_goes_on_with_workers_or_without(
    cluster: str, demo_bundle: Path, alone: tuple[AccuracyReport, bytes], tmp_path: Path
) -> None:
    path = tmp_path / "predictions.jsonl"
    path.write_bytes(b"".join(alone[1].splitlines(keepends=True)[: LIMIT // 3]))
    given = ["--limit", str(LIMIT), "--seed", "5", "--ratios", "0,0.5", "--methods", "catp,random"]
    given += ["--positions", "original", "--predictions", str(path), "--cluster", cluster, "--workers", "2", "--json"]
    result = CliRunner().invoke(app, [str(demo_bundle), *given])
    assert result.exit_code == 0, result.output
    assert path.read_bytes() == alone[1]
    assert AccuracyReport.model_validate(json.loads(result.stdout.splitlines()[-1])) == alone[0]


@needs_ray
@pytest.mark.heavy
def test_more_workers_than_cores_are_refused(cluster: str, demo_bundle: Path) -> None:
    with (
        pytest.raises(UsageError, match=rf"7 workers: the cluster has {2 * CPUS} CPUs; give --workers 1 to 6"),
        open_workers(demo_bundle, cluster, 7, "cpu", None),
    ):
        pass


@needs_ray
@pytest.mark.heavy
def test_what_a_worker_can_t_open_is_said_in_a_line(cluster: str, demo_bundle: Path) -> None:
    with (
        pytest.raises(UsageError, match=r"engines 'none'.*\(worker on "),
        open_workers(demo_bundle, cluster, 1, "cpu", "none"),
    ):
        pass


@needs_ray
@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense", "ray://127.0.0.1:1"])
def test_a_cluster_that_is_not_there_is_refused_at_once(address: str, demo_bundle: Path) -> None:
    result = CliRunner().invoke(app, [str(demo_bundle), "--limit", "4", "--cluster", address])
    assert result.exit_code == 2
    assert f"--cluster {address}: no cluster can be reached there" in result.stderr


def test_options_that_need_a_cluster_or_a_bundle(demo_bundle: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [str(demo_bundle), "--workers", "2"])
    assert result.exit_code == 2 and "--workers: only with --cluster" in result.stderr
    result = CliRunner().invoke(app, [str(demo_bundle), "--cluster", "auto", "--encoder-flops", "0.5"])
    assert result.exit_code == 2 and "--cluster: not with shares" in result.stderr
    result = CliRunner().invoke(app, [str(tmp_path), "--cluster", "auto"])
    assert result.exit_code == 2 and "is no bundle" in result.stderr


# A worker without Ray around it.


def work(settings: tuple[Setting, ...]) -> Work:
    return Work(settings, "exact match", 5, 8, USUAL)


def test_a_worker_answers_as_it_is_asked(demo_bundle: Path, pipeline: Pipeline) -> None:
    worker = Worker(str(demo_bundle), sha256(demo_bundle / MANIFEST_NAME), "cpu", None, 1)
    batch: list[VqaExample] = list(open_data("demo").subset(4, None, 3))
    everything, half = (tuple(Grid(("catp",), (ratio,), ("original",)).settings()) for ratio in (0.0, 0.5))
    found: list[list[Prediction]] = [worker.answer(work(settings), batch) for settings in (everything, half)]
    tokens = pipeline.manifest.tokens
    assert [[one.num_kept for one in some] for some in found] == [[(tokens,)] * 4, [(tokens // 2,)] * 4]
    assert worker.open() == pipeline.provider.name


def test_a_worker_refuses_another_bundle(demo_bundle: Path) -> None:
    worker = Worker(str(demo_bundle), "0" * 64, "cpu", None, 1)
    with pytest.raises(UsageError, match="is another bundle; give a folder that all machines have alike"):
        worker.open()


def test_errors_of_a_worker_can_be_read_elsewhere(demo_bundle: Path, tmp_path: Path) -> None:
    """A graph's error has arguments of its own, which would be lost on the way."""
    worker = Worker(str(tmp_path / "missing"), "0" * 64, "cpu", None, 1)
    with pytest.raises(CatpError) as raised:
        worker.open()
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)
    assert "worker on" in str(raised.value)
