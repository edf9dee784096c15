"""The base of every Helios command: exit codes, errors in one line, output in any encoding."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from helios.errors import DeviceLost, UserError


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
        raise click.exceptions.Exit(130) from None
