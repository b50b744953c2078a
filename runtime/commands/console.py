"""The parts that all commands share: where they print, how they fail, how they show that they are busy."""

from __future__ import annotations

import functools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import typer
import typer.core

from catp.runtime.errors import CatpError
from catp.runtime.system.printable import in_json, one_line, printable

if TYPE_CHECKING:
    from rich.console import Console


def make_console(**options: Any) -> Console:
    """On standard error; see rich.console.Console. It prints nothing that would steer a terminal."""
    from catp.runtime.commands.safe_console import SafeConsole

    return SafeConsole(stderr=True, highlight=False, **options)


class _Late:
    """A console that is made when it is first used: a command that has nothing to say does not load rich."""

    @functools.cached_property
    def _made(self) -> Console:
        return make_console()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._made, name)

    @property
    def is_terminal(self) -> bool:
        """Whether it is one that shows spinners. Variables by which rich is told so are its own to read."""
        told = any(name in os.environ for name in ("FORCE_COLOR", "TTY_COMPATIBLE"))
        return (told or sys.stderr.isatty()) and self._made.is_terminal


console: Console = cast("Console", _Late())
"""People read standard error; standard output is for results and for --json."""


def escape(text: str) -> str:
    """Text that no part of is markup."""
    from rich.markup import escape as escaped

    return escaped(text)


def reports_errors(command: Callable[..., None]) -> Callable[..., None]:
    """A user's mistake ends a command with one line and its exit code; a bug keeps its traceback."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except CatpError as error:
            console.print(f"[bold red]error:[/] {escape(one_line(str(error)))}", soft_wrap=True)
            raise typer.Exit(error.exit_code) from None

    return run


@contextmanager
def _one_line_errors(ctx: Any) -> Iterator[None]:
    """Arguments that can't be parsed are reported as every other mistake is: one line, exit code 2."""
    try:
        yield
    except Exception as error:
        # Typer's usage errors have no public base class; this method is what they share.
        if not hasattr(error, "format_message"):
            raise
        said = " ".join(error.format_message().split())  # of choices it makes a list, line by line
        message = f"{said.rstrip('.')}; see {ctx.command_path} --help"
        console.print(f"[bold red]error:[/] {escape(one_line(message))}", soft_wrap=True)
        raise typer.Exit(2) from None


class _Command(typer.core.TyperCommand):
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        with _one_line_errors(ctx):
            return super().parse_args(ctx, args)


class _Group(typer.core.TyperGroup):
    usual: str | None = None  # the command that is meant where none is named

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        named = not args or args[0] in self.commands or args[0] in _SETTINGS["help_option_names"]
        return super().parse_args(ctx, args if named or self.usual is None else [self.usual, *args])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        with _one_line_errors(ctx):
            return super().resolve_command(ctx, args)


_SETTINGS = {"help_option_names": ["-h", "--help"]}


def make_app(command: Callable[..., None]) -> typer.Typer:
    """A program with `command` as its only command."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
    app.command(cls=_Command, context_settings=_SETTINGS)(reports_errors(command))
    return app


def make_group(help: str, commands: dict[str, Callable[..., None]], usual: str | None = None) -> typer.Typer:
    """A program with a command for each thing it does; `usual` is the one that need not be named."""
    app = typer.Typer(
        cls=type("_Group", (_Group,), {"usual": usual}),
        help=help,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings=_SETTINGS,
    )
    app.callback()(lambda: None)  # so that a single command is named, too
    for name, command in commands.items():
        app.command(name, cls=_Command, context_settings=_SETTINGS)(reports_errors(command))
    return app


ANNOUNCED_AFTER = 1.0
"""Seconds after which a step says what it is, where no terminal shows a spinner: a log of a build is no riddle then."""


@contextmanager
def busy(what: str) -> Iterator[None]:
    """Progress display of one step.

    A terminal gets a spinner while the step lasts, and one line with its time when it is done. Elsewhere a step that
    takes longer than `ANNOUNCED_AFTER` prints its name once.
    """
    if not console.is_terminal:
        announcement = threading.Timer(ANNOUNCED_AFTER, lambda: console.print(f"{escape(what)} ...", soft_wrap=True))
        announcement.daemon = True
        announcement.start()
        try:
            yield
        finally:
            announcement.cancel()
        return
    started = time.monotonic()
    with console.status(escape(one_line(what))):
        yield
    console.print(f"  [green]✓[/] {escape(what)} [dim]{time.monotonic() - started:.1f} s[/]")


def print_line(text: str = "") -> None:
    """A line on standard output, without what would steer a terminal."""
    print_result(printable(text) + "\n")


def print_json_line(text: str) -> None:
    """A machine-readable line on standard output."""
    print_result(in_json(text) + "\n")


def print_result(text: str) -> None:
    """Text on standard output, there when this returns.

    Raises:
        CatpError: it can't be written; nothing more is.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise  # whoever read it has had enough: Typer ends silently
    except OSError as error:
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115  or else Python tries once more, and says so, in the end
        raise CatpError(f"standard output: can't be written ({error.strerror})") from None
