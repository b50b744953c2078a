"""catp-bench serve: how many tokens a server gives its clients, and how soon."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich.progress import Progress

from catp.calibration.benchmark.load.workload import Pictures, Workload
from catp.calibration.benchmark.machine import describe_machine, load_average
from catp.calibration.benchmark.options import parse_batches
from catp.calibration.benchmark.results.screen import show_table
from catp.calibration.plots import check_plot
from catp.runtime.commands.console import busy, console, print_json_line
from catp.runtime.errors import CatpError, UsageError
from catp.runtime.files import check_file_output, write_file
from catp.runtime.system.optional_imports import optional_import

OURS = "catp"


def serve(
    bundle: Annotated[
        Path | None, typer.Argument(help="Folder written by catp-export: catp-serve is started on it, and stopped.")
    ] = None,
    url: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]URL",
            help="A running server with OpenAI's chat completions, in place of a bundle or beside it; repeatable: "
            "all are measured in the same rounds.",
        ),
    ] = None,
    serve_options: Annotated[
        str, typer.Option(metavar="OPTIONS", help="Of catp-serve on the bundle, such as '--rows 4 --threads 2'.")
    ] = "",
    model: Annotated[
        str | None,
        typer.Option(
            help="As servers of --url name it that serve several, or list none. Default: the only one that each serves."
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help="File whose first line is the key that the servers of --url want.")
    ] = None,
    clients: Annotated[
        str, typer.Option(help="Clients at a time, each of which waits for its answers; separated by commas.")
    ] = "1,2,4,8,16",
    rates: Annotated[
        str | None,
        typer.Option(help="Also requests that arrive so many a second, by chance (Poisson), and wait for nobody."),
    ] = None,
    pictures: Annotated[
        str, typer.Option(help="cached: asked about before; new: seen by no request before; or both: cached,new.")
    ] = "cached,new",
    requests: Annotated[int, typer.Option(min=1, help="Of each client in a round.")] = 4,
    rounds: Annotated[int, typer.Option(min=1, help="Each with every setting once, in an order drawn anew.")] = 6,
    prompt: Annotated[str, typer.Option(help="The text of every request.")] = "what is in the picture?",
    max_tokens: Annotated[int, typer.Option(min=1, help="Of an answer.")] = 32,
    body: Annotated[
        str | None,
        typer.Option(
            metavar="JSON",
            help="Fields of every body. Default for a bundle: min_new_tokens, so that no answer ends early; vLLM's "
            'name for that is {"ignore_eos": true}.',
        ),
    ] = None,
    image_size: Annotated[int, typer.Option(min=16, max=4096, help="Pixels of a picture's side.")] = 224,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds of silence after which a request has failed.")] = 120,
    seed: Annotated[int, typer.Option(min=0, help="Of pictures, order, arrivals and intervals.")] = 0,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The report as a JSON file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Tokens a second and times, by clients, as a PNG file.")] = None,
    json_output: Annotated[
        bool, typer.Option("--json", help="The report as one line of JSON on standard output.")
    ] = False,
) -> None:
    """Measure servers as their clients see them: tokens a second, time to the first text, time between texts.

    Every server is asked by the same client, over HTTP and as a stream. Bodies are made before the clock runs; the
    client needs some of the same machine's time, unless servers run elsewhere.

    catp-bench serve catp-bundle --clients 1,8 -o load.json

    catp-bench serve --url ours=http://127.0.0.1:8000 --url theirs=http://127.0.0.1:9000 --body '{"ignore_eos": true}'
    """
    check_file_output("--output", output)
    check_plot(plot)
    library, missing = optional_import("httpx")
    if library is None:
        raise UsageError(f"catp-bench serve: httpx {missing}; install this project's extra: pip install '.[load]'")
    from catp.calibration.benchmark.load.measure import measure
    from catp.calibration.benchmark.load.report import Server, Setting, make_report
    from catp.calibration.benchmark.load.tables import load_table
    from catp.calibration.benchmark.load.targets import find_target, parse_target, started

    kinds = _kinds(pictures)
    numbers, arriving = _clients(clients), _rates(rates)
    given = [parse_target(text) for text in url or ()]
    names = [*([OURS] if bundle else []), *(name for name, _ in given)]
    if not names:
        raise UsageError("no server: give a folder written by catp-export, or --url of one that runs")
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"server {repeated!r} is named twice; give --url NAME=URL with another name")
    if serve_options and bundle is None:
        raise UsageError(f"--serve-options {serve_options}: they are for a bundle that is served here; give one")
    fields = _fields(body, max_tokens, own=bundle is not None and not given)
    workload = Workload(prompt, max_tokens, image_size, seed, fields)
    key = None if api_key_file is None else _key(api_key_file)
    load_before = load_average()
    with ExitStack() as stack:
        targets = []
        if bundle is not None:
            with busy("start catp-serve"):
                targets.append(stack.enter_context(started(bundle, OURS, serve_options)))
        targets += [find_target(name, address, model, key) for name, address in given]
        settings = [
            Setting(server=target.name, pictures=kind, clients=number, rate=rate)
            for target in targets
            for kind in kinds
            for number, rate in [*((n, None) for n in numbers), *((None, r) for r in arriving)]
        ]
        began = time.monotonic()
        with _progress(rounds * len(settings)) as advance:
            samples = measure(targets, settings, workload, requests, rounds, timeout, advance)
        seconds = time.monotonic() - began
    servers = [
        Server(name=target.name, model=target.model, **(_own(bundle, serve_options) if target.process else {}))
        for target in targets
    ]
    report = make_report(servers, workload, requests, rounds, describe_machine(), load_before, seconds, samples)
    show_table(load_table(report))
    if output is not None:
        write_file(output, lambda file: file.write_text(report.model_dump_json(indent=1) + "\n"))
    if plot is not None:
        from catp.calibration.benchmark.load.plot import draw_load

        write_file(plot, lambda file: draw_load(report, file))
    if json_output:
        print_json_line(report.model_dump_json())
    for one in report.results:
        if not one.tokens:
            worst = max(one.failures, key=lambda name: one.failures[name])
            raise CatpError(
                f"{one.setting.server}: none of {one.requests} requests was answered ({worst}), {one.setting.pictures} "
                f"pictures, {one.setting.load} clients"
            )


def _own(bundle: Path | None, options: str) -> dict[str, str]:
    return {"bundle": str(bundle), "options": options}


def _kinds(text: str) -> tuple[Pictures, ...]:
    accepted: tuple[Pictures, ...] = get_args(Pictures)
    asked = text.split(",")
    if unknown := [kind for kind in asked if kind not in accepted]:
        raise UsageError(f"--pictures {unknown[0]!r}: unknown; accepted: {', '.join(accepted)}, separated by commas")
    return tuple(kind for kind in accepted if kind in asked)


def _clients(text: str) -> tuple[int, ...]:
    try:
        return parse_batches(text)
    except UsageError:
        raise UsageError(f"--clients {text!r}: give whole numbers from 1 on, such as 1,8") from None


def _rates(text: str | None) -> tuple[float, ...]:
    try:
        found = tuple(sorted({float(part) for part in text.split(",")})) if text else ()
    except ValueError:
        found = (0.0,)
    if not all(0 < rate < 1e6 for rate in found):  # NaN fails both comparisons
        raise UsageError(f"--rates {text!r}: give requests a second, above 0, such as 2,5")
    return found


def _fields(text: str | None, max_tokens: int, own: bool) -> dict[str, Any]:
    if text is None:
        return {"min_new_tokens": max_tokens} if own else {}
    try:
        found = json.loads(text)
    except ValueError as error:
        raise UsageError(f"--body {text}: no JSON ({error})") from None
    if not isinstance(found, dict):
        raise UsageError(f'--body {text}: give an object, such as {{"ratio": 0.5}}')
    return found


def _key(path: Path) -> str:
    try:
        key = path.read_text().split("\n", 1)[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--api-key-file {path}: it can't be read ({type(error).__name__})") from None
    if not key:
        raise UsageError(f"--api-key-file {path}: its first line is empty")
    return key


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    """A bar that moves between loads, not while one runs."""
    with Progress(console=console, transient=True, auto_refresh=False, disable=not console.is_terminal) as progress:
        task = progress.add_task("loads", total=total)
        yield lambda: progress.update(task, advance=1, refresh=True)
