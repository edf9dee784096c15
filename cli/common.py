"""The base of every Helios command: exit codes, errors in one line, output in any encoding."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import click

from helios.errors import DeviceLost, UserError
from helios.model.settings import TEXTS
from helios.train.config import BY_KEY

INTERRUPTED = 130  # exit code, a shell's for SIGINT


class HeliosCommand(click.Command):
    """A command whose errors are one line on stderr; exit codes are 2 for a UserError or wrong usage, 1 for a lost
    device, 130 for Ctrl-C.

    Any other exception is a bug, with Python's traceback and exit code 1. Characters that standard output's encoding
    lacks are replaced.
    """

    def main(self, *args: Any, **kwargs: Any) -> Any:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")
        return super().main(*args, **kwargs)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with _exit_codes():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with _exit_codes():
            return super().invoke(ctx)


class HeliosGroup(HeliosCommand, click.Group):
    """A group of such commands, which may be plain click commands themselves."""


def setting_options(*keys: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that adds the flags of these settings to a command; their values stay text, as with --set."""
    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for s in (BY_KEY[key] for key in reversed(keys)):
            said = f"{s.help[0].upper()}{s.help[1:]}." + (f"  [default: {s.default_text}]" if s.default_text else "")
            metavar = f"[{'|'.join(s.range.names)}]" if s.range.names else s.kind.metavar
            several: dict[str, Any] = {"multiple": True, "callback": lambda ctx, param, given: list(given) or None}
            command = click.option(f"--{s.flag}", s.key, metavar=metavar, help=said,
                                   **(several if s.kind is TEXTS else {}))(command)
        return command
    return add


def new_folder(kind: str) -> Path:
    """Return runs/KIND-<the present time in UTC>."""
    return Path("runs") / f"{kind}-{time.strftime('%Y%m%d%H%M%S', time.gmtime())}"


def interrupted() -> NoReturn:
    """End the command with the exit code of an interruption."""
    raise click.exceptions.Exit(INTERRUPTED)


@contextmanager
def _exit_codes() -> Iterator[None]:
    try:
        yield
    except (UserError, DeviceLost, click.UsageError) as error:
        message = str(error)
        if isinstance(error, click.UsageError):
            hint = f"; see {error.ctx.command_path} --help" if error.ctx else ""
            message = error.format_message().removesuffix(".") + hint
        click.echo(f"error: {' '.join(message.splitlines())}", err=True)
        raise click.exceptions.Exit(1 if isinstance(error, DeviceLost) else 2) from None
    except KeyboardInterrupt:
        raise click.exceptions.Exit(INTERRUPTED) from None
