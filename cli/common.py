"""What every Helios command shares: how errors and output leave the program."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from helios.errors import DeviceLost, UserError


class HeliosCommand(click.Command):
    """A command whose errors leave as one line on stderr: a UserError and usage that click refuses with exit code 2, a
    lost device with 1. Ctrl-C leaves with 130.

    Any other exception is a bug, and leaves as Python's traceback and 1. A character that standard output's encoding
    lacks is replaced.
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
