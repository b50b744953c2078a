"""catp-serve: answer questions about images over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from catp.runtime.bundle.folder import open_bundle
from catp.runtime.bundle.footprint import Footprint, check_memory
from catp.runtime.commands.console import make_app
from catp.runtime.commands.loading_options import MaxMemoryOption, RehashOption, check_limit, footprint
from catp.runtime.errors import UsageError
from catp.runtime.limits import (
    CACHE_BYTES,
    DRAIN_SECONDS,
    MOST_SERVED_ROWS,
    POSITIONS,
    QUEUE_SECONDS,
    QUEUED_PER_ROW,
    REQUEST_SECONDS,
    SERVED_LENGTH,
    SERVED_ROWS,
    TEMPLATE_CHARACTERS,
)
from catp.runtime.providers import PROVIDERS
from catp.runtime.system.optional_imports import optional_import

_LIMITS = "Limits"


def serve(
    bundle: Annotated[
        Path | None, typer.Argument(help="Folder written by catp-export, served under its own name.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", help="NAME=BUNDLE: another bundle, served under that name; repeatable."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: all of them.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: one that is free.")] = 8000,
    provider: Annotated[str, typer.Option(help=f"What executes the graphs: {', '.join(PROVIDERS)}.")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads within an operator.")] = None,
    engines: Annotated[
        str | None, typer.Option(help="Engine set, as catp-inspect names it. Default: the newest that fits.")
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(help="File with a key a line, one of which clients must send. Default: CATP_API_KEY, or none."),
    ] = None,
    prompt_template: Annotated[
        str | None,
        typer.Option(help="What the model reads of a chat's text, with {text}. Default: the family's form."),
    ] = None,
    allow_media_domain: Annotated[
        list[str] | None,
        typer.Option(help="Host that pictures may be fetched from by https; repeatable. Default: none is fetched."),
    ] = None,
    page: Annotated[bool, typer.Option("--page/--no-page", help="A page to try it in a browser, at /.")] = True,
    otlp_traces_endpoint: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Where a span of each request is sent (OpenTelemetry over HTTP)."),
    ] = None,
    rows: Annotated[
        int,
        typer.Option(
            min=1, max=MOST_SERVED_ROWS, help="Answers of a model that grow at a time.", rich_help_panel=_LIMITS
        ),
    ] = SERVED_ROWS,
    max_length: Annotated[
        int,
        typer.Option(
            min=2, max=POSITIONS, help="Tokens of image, prompt and answer together.", rich_help_panel=_LIMITS
        ),
    ] = SERVED_LENGTH,
    queue: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=POSITIONS,
            help=f"Requests that wait for a row. Default: {QUEUED_PER_ROW} for each.",
            rich_help_panel=_LIMITS,
        ),
    ] = None,
    admissions_per_step: Annotated[
        int,
        typer.Option(
            min=1,
            max=MOST_SERVED_ROWS,
            help="Prompts read between two tokens of those under way.",
            rich_help_panel=_LIMITS,
        ),
    ] = 1,
    cache: Annotated[
        int, typer.Option(min=0, help="MB for pictures seen before; 0: none.", rich_help_panel=_LIMITS)
    ] = CACHE_BYTES >> 20,
    queue_timeout: Annotated[
        float, typer.Option(min=0, help="Seconds that a request waits for a row.", rich_help_panel=_LIMITS)
    ] = QUEUE_SECONDS,
    request_timeout: Annotated[
        float, typer.Option(min=0, help="Seconds that a request takes at most.", rich_help_panel=_LIMITS)
    ] = REQUEST_SECONDS,
    drain_timeout: Annotated[
        float,
        typer.Option(min=0, help="Seconds that answers get once the server is to stop.", rich_help_panel=_LIMITS),
    ] = DRAIN_SECONDS,
    max_memory: MaxMemoryOption = None,
    rehash: RehashOption = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="ONNX Runtime's log on standard error.")] = False,
) -> None:
    """Serve bundles over HTTP: OpenAI's chat completions, KServe's v2 protocol, health, metrics.

    catp-serve catp-bundle --port 8000
    """
    library, missing = optional_import("uvicorn")
    if library is None:
        raise UsageError(f"catp-serve: uvicorn {missing}; install this project's extra: pip install '.[serve]'")
    from catp.runtime.server.model.engine import check_served
    from catp.runtime.server.reading.fetching import check_domain
    from catp.runtime.server.serving import Serving, loader
    from catp.runtime.server.settings import ServerSettings, read_keys

    bundles = _bundles(bundle, model or [])
    check_limit(max_memory)
    # What is wrong with a bundle is said before a port is taken.
    manifests = [open_bundle(path, verify=False).manifest for path in bundles.values()]
    for name, manifest in zip(bundles, manifests):
        check_served(name, manifest)
    each = [footprint(manifest, provider, rows, max_length) for manifest in manifests]
    # Pictures that were seen before are kept of each model.
    cached = sum(found.cache for found in each) + len(each) * (cache << 20)
    needed = Footprint(sum(found.weights for found in each), cached)
    check_memory(f"serving {', '.join(map(str, bundles.values()))}", needed, max_memory)
    if prompt_template is not None and ("{text}" not in prompt_template or len(prompt_template) > TEMPLATE_CHARACTERS):
        raise UsageError(f"--prompt-template {prompt_template[:100]!r}: it must contain {{text}}")
    settings = ServerSettings(
        host=host,
        port=port,
        rows=rows,
        length=max_length,
        queue=queue,
        admissions_per_step=admissions_per_step,
        cache_bytes=cache << 20,
        queue_seconds=queue_timeout,
        request_seconds=request_timeout,
        drain_seconds=drain_timeout,
        keys=read_keys(api_key_file),
        media_domains=tuple(map(check_domain, allow_media_domain or ())),
        prompt_template=prompt_template,
        page=page,
        traces=otlp_traces_endpoint,
    )
    loaders = {
        name: loader(str(path), provider=provider, threads=threads, engines=engines, verbose=verbose, rehash=rehash)
        for name, path in bundles.items()
    }
    Serving(loaders, settings).run()


def _bundles(bundle: Path | None, models: list[str]) -> dict[str, Path]:
    """Bundles by the name under which each is served."""
    given = [] if bundle is None else [(bundle.resolve().name, bundle)]
    for text in models:
        name, separator, path = text.partition("=")
        if not (separator and name and path):
            raise UsageError(f"--model {text}: give NAME=BUNDLE")
        given.append((name, Path(path)))
    if not given:
        raise UsageError("no bundle: give a folder written by catp-export, or --model NAME=BUNDLE")
    for name, _ in given:
        if not name.replace("-", "").replace("_", "").replace(".", "").isalnum() or not name.isascii():
            raise UsageError(
                f"model {name!r}: a name has letters, digits, '-', '_' and '.'; give one with --model NAME="
            )
    names = [name for name, _ in given]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise UsageError(f"model {repeated!r} is named twice; give each bundle a name of its own")
    return dict(given)


app = make_app(serve)
