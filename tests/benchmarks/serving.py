"""Servers under load, on a model of middle size: `python tests/benchmarks/serving.py`.

`catp-serve` on the fp32 bundle and on the one with INT8 and INT4 decode steps that `mid_size.py` makes, and rivals that
are given with the Python of their environment, `--litserve PYTHON` and `--vllm PYTHON`; all in the same rounds and by
the client of `catp-bench serve`. Answers have exactly 32 tokens. Nothing else should run meanwhile. The report is kept
as JSON in tests/benchmarks/records/; `--record FILE` only prints its table.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import httpx
import typer
from mid_size import ROOT

from catp.calibration.benchmark.load.measure import measure
from catp.calibration.benchmark.load.report import LoadReport, Measured, Server, Setting, make_report, read_report
from catp.calibration.benchmark.load.tables import ratio_text
from catp.calibration.benchmark.load.targets import Target, find_target, started
from catp.calibration.benchmark.load.workload import Workload
from catp.calibration.benchmark.machine import describe_machine, load_average
from catp.runtime.system.machine import available_cpus

RECORD = ROOT / "tests" / "benchmarks" / "records" / "serving.json"
TOKENS = 32
CLIENTS = (1, 2, 4, 8, 16)
START_SECONDS = 600
# Each server's name for "no answer ends early"; LitServe's is an argument of its script.
FIELDS = {"min_new_tokens": TOKENS}
VLLM_FIELDS = {"ignore_eos": True}


@contextmanager
def rival(
    name: str, command: list[str], port: int, model: str, environment: Mapping[str, str] = {}
) -> Iterator[Target]:
    """A server of somebody else's, once it answers; its whole group of processes ends with it."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **environment}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        try:
            until = time.monotonic() + START_SECONDS
            while True:
                if process.poll() is not None or time.monotonic() > until:
                    raise SystemExit(f"{name} does not start: {os.pread(log.fileno(), 1 << 20, 0)[-2000:].decode()}")
                try:
                    httpx.get(f"http://127.0.0.1:{port}/", timeout=5)
                    break
                except httpx.HTTPError:
                    time.sleep(0.5)
            yield find_target(name, f"http://127.0.0.1:{port}", model, None)
        finally:
            os.killpg(process.pid, 15)
            process.wait()


def rows(report: LoadReport) -> list[str]:
    """A line of Markdown for each server, kind of pictures and number of clients."""
    head = ["server", "pictures", "clients", "tokens/s", "answer, ms", "95 %"]
    head += ["to one client", f"to {report.servers[0].name}"]
    return [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(_row(report, one) for one in report.results)]


def _row(report: LoadReport, one: Measured) -> str:
    found = {c.why: ratio_text(c.ratio) for c in report.comparisons if c.of == one.setting}
    # Tokens of random weights have no text, whose times would be a client's other figures.
    times = [f"{value:.0f}" for value in (one.total_ms.p50, one.total_ms.p95)] if one.total_ms else ["", ""]
    cells = [one.setting.server, one.setting.pictures, one.setting.load, f"{one.throughput:.1f}", *times]
    return f"| {' | '.join([*cells, found.get('clients', ''), found.get('server', '')])} |"


def main(
    folder: Annotated[Path, typer.Option(help="What mid_size.py made.")] = Path("build/mid-size"),
    litserve: Annotated[Path | None, typer.Option(help="Python of an environment with LitServe and '.[cpu]'.")] = None,
    vllm: Annotated[Path | None, typer.Option(help="Python of an environment with vLLM for CPUs.")] = None,
    vllm_preload: Annotated[
        str, typer.Option(help="Libraries that vLLM's page on CPUs advises: tcmalloc and libiomp5, separated by ':'.")
    ] = "",
    rounds: Annotated[int, typer.Option(min=1)] = 6,
    requests: Annotated[int, typer.Option(min=1, help="Of each client in a round.")] = 2,
    clients: Annotated[str, typer.Option(help="Separated by commas.")] = ",".join(map(str, CLIENTS)),
    output: Annotated[Path, typer.Option("-o", "--output", help="The report.")] = RECORD,
    record: Annotated[Path | None, typer.Option(help="Print the table of this report, and time nothing.")] = None,
) -> None:
    """Measure tokens a second by number of clients."""
    if record is None:
        record = output
        workload = Workload("what is in the picture?", TOKENS, 224, 0, FIELDS)
        bundle, checkpoint = folder / "fp32" / "bundle", next((folder / "fp32").glob("synthetic-*"))
        load_before = load_average()
        with ExitStack() as stack:
            targets = [
                stack.enter_context(started(bundle, "fp32", "")),
                stack.enter_context(started(folder / "int8-int4", "int8, decode steps int4", "")),
            ]
            if litserve is not None:
                script = str(Path(__file__).parent / "rivals" / "litserve_server.py")
                command = [str(litserve), script, str(bundle), "--port", "9001", "--tokens", str(TOKENS)]
                targets.append(stack.enter_context(rival("LitServe fp32", command, 9001, "any")))
            if vllm is not None:
                command = [str(vllm), "-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoint)]
                command += ["--dtype", "float32", "--max-model-len", "128", "--max-num-seqs", "8", "--port", "9002"]
                settings_of_vllm = {
                    "VLLM_CPU_KVCACHE_SPACE": "1",
                    "VLLM_CPU_OMP_THREADS_BIND": f"0-{available_cpus() - 1}",  # it would leave a core out
                    "LD_PRELOAD": vllm_preload,
                }
                targets.append(
                    stack.enter_context(rival("vLLM fp32", command, 9002, str(checkpoint), settings_of_vllm))
                )
            fields = {target.name: VLLM_FIELDS for target in targets if target.name.startswith("vLLM")}
            settings = [
                Setting(server=target.name, pictures=kind, clients=number)
                for target in targets
                for kind in ("cached", "new")
                for number in map(int, clients.split(","))
            ]
            began = time.monotonic()
            samples = measure(targets, settings, workload, requests, rounds, 600, fields=fields)
            seconds = time.monotonic() - began
        servers = [Server(name=target.name, model=target.model) for target in targets]
        report = make_report(servers, workload, requests, rounds, describe_machine(), load_before, seconds, samples)
        output.write_text(report.model_dump_json(indent=1) + "\n")
    print("\n".join(rows(read_report(record))))


if __name__ == "__main__":
    typer.run(main)
