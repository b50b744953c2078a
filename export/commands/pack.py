"""catp-pack: a bundle with all that a machine without network needs to run it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from catp.export.packing.platforms import find_platform
from catp.runtime.commands.console import busy, console, make_app
from catp.runtime.errors import UsageError
from catp.runtime.system.optional_imports import optional_import

EXTRAS = ("cpu", "serve")
"""Extras of this project that a machine needs to run bundles."""


def pack(
    bundle: Annotated[Path, typer.Argument(help="Folder written by catp-export.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the pack.")],
    platform: Annotated[
        str | None, typer.Option(help="linux-x86_64 or linux-aarch64. Default: this machine's.")
    ] = None,
    python: Annotated[
        str | None, typer.Option(help="Version of the Python there, such as 3.12. Default: this one's.")
    ] = None,
    extra: Annotated[
        list[str] | None,
        typer.Option(help="serve: catp-serve too. Default: cpu, which is always there."),
    ] = None,
    constraint: Annotated[
        Path | None, typer.Option(help="File of versions for the wheels, as pip reads it. Default: the newest.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the pack that is there.")] = False,
) -> None:
    """Pack a bundle for a machine without network: wheels of the runtime, a lock of their hashes, install.sh.

    catp-pack catp-bundle --platform linux-aarch64 --python 3.12 -o pack
    """
    library, missing = optional_import("packaging")
    if library is None:
        raise UsageError(f"catp-pack: packaging {missing}; install this project's extra: pip install '.[pack]'")
    from catp.export.packing.packer import make_pack

    if unknown := [name for name in extra or () if name not in EXTRAS]:
        raise UsageError(f"--extra {unknown[0]}: accepted: {', '.join(EXTRAS)}")
    target = find_platform(platform, python)
    extras = tuple(dict.fromkeys(("cpu", *(extra or ()))))
    make_pack(bundle, output, target, extras, constraint, overwrite, busy)
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    console.print(
        f"Packed {size / 1e6:,.1f} MB for {target.name}, Python {target.python}. Next, there: "
        f"{escape(str(output))}/install.sh",
        soft_wrap=True,
    )


app = make_app(pack)
