"""The base of every Helios command: exit codes, errors in one line, output in any encoding."""

from __future__ import annotations

import errno
import io
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import click

from helios.errors import DeviceLost, Diverged, UserError
from helios.model.settings import INT, TEXTS, Kind, Range, Setting
from helios.train.config import BY_KEY
from helios.train.progress import Output

INTERRUPTED = 130  # exit code, a shell's for SIGINT


class _Context(click.Context):
    @property
    def command_path(self) -> str:
        return super().command_path.rstrip()  # of a default command, which has no name


class HeliosCommand(click.Command):
    """A command whose errors are one line on stderr; exit codes are 2 for a UserError, a file that cannot be used or
    wrong usage, 1 for a lost device or a training that diverged, 130 for Ctrl-C.

    Any other exception is a bug, with Python's traceback and exit code 1. Characters that standard output's encoding
    lacks are replaced.
    """

    context_class = _Context

    def main(self, *args: Any, **kwargs: Any) -> Any:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")
        warnings.showwarning = lambda message, *_, **__: click.echo(f"warning: {message}", err=True)
        return super().main(*args, **kwargs)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        for arg in args:
            if not _is_text(arg):
                raise click.UsageError(f"{arg!a} is not UTF-8 or has a null byte; give other names to files", ctx)
        return super().parse_args(ctx, args)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with _exit_codes():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with _exit_codes():
            result = super().invoke(ctx)
            if sys.stdout:
                sys.stdout.flush()  # here, and not at exit, where an error has no handler
            return result


class Given(click.ParamType):
    """A name, of a file or of anything else, which is not empty: an unset variable of a shell's is no default.
    make: what is made of it."""

    name = "text"

    def __init__(self, make: Callable[[Any], Any] = str) -> None:
        self.make = make

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not value:
            self.fail("the value is empty; leave the option out, or give it one", param, ctx)
        return self.make(value)


class Number(click.ParamType):
    """A number that is read as a setting is."""

    name = "number"

    def __init__(self, kind: Kind, range: Range) -> None:
        self.setting = Setting("", "", "", kind, range, "", 0)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return self.setting.read(value, param.opts[0] if param else "")


def whole(least: int, most: int | None = None) -> Number:
    """Return the type of whole numbers from `least` on, to `most` where that is given."""
    words = f"at least {least}" if most is None else f"from {least} to {most:,}"
    return Number(INT, Range(words, lambda x: least <= x and (most is None or x <= most)))


class HeliosGroup(HeliosCommand, click.Group):
    """A group of such commands, which may be plain click commands themselves."""


class DefaultGroup(HeliosGroup):
    """A group whose first command is meant where none is named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        named = args and args[0] in self.commands
        return super().parse_args(ctx, args if named else ["", *args])

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        return super().get_command(ctx, name or next(iter(self.commands)))


def setting_options(*keys: str | Setting) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that adds the flags of these settings, a run's by their keys, to a command; their values stay
    text, as with --set."""
    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for s in (BY_KEY[key] if isinstance(key, str) else key for key in reversed(keys)):
            said = f"{s.help[0].upper()}{s.help[1:]}." + (f"  [default: {s.default_text}]" if s.default_text else "")
            metavar = f"[{'|'.join(s.range.names)}]" if s.range.names else s.kind.metavar
            several: dict[str, Any] = {"multiple": True, "callback": _one_or_list}
            command = click.option(f"--{s.flag}", s.key, metavar=metavar, help=said,
                                   **(several if s.kind is TEXTS else {}))(command)
        return command
    return add


def _one_or_list(ctx: click.Context, param: click.Parameter, given: tuple[str, ...]) -> str | list[str] | None:
    return given[0] if len(given) == 1 else list(given) or None


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
    except (UserError, DeviceLost, Diverged, click.UsageError, OSError) as error:
        message = str(error)
        if isinstance(error, OSError):
            message = _of_the_system(error)
        if isinstance(error, click.UsageError):
            hint = f"; see {error.ctx.command_path} --help" if error.ctx else ""
            message = error.format_message().removesuffix(".") + hint
        click.echo(f"error: {' '.join(message.splitlines())}", err=True)
        raise click.exceptions.Exit(1 if isinstance(error, DeviceLost | Diverged) else 2) from None
    except KeyboardInterrupt as error:
        click.echo(str(error) or "interrupted", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None


def _of_the_system(error: OSError) -> str:
    """Return the message of an error about a file or about writing anywhere; raise any other again."""
    if error.filename is not None:
        return f"cannot use {error.filename}: {error.strerror}"
    if error.errno not in (errno.ENOSPC, errno.EIO, errno.EBADF):  # among others a broken pipe, which click handles
        raise error
    Output(sys.stdout).discard()
    return f"cannot write: {error.strerror}"


def _is_text(arg: str) -> bool:
    try:
        return b"\0" not in arg.encode()
    except UnicodeEncodeError:
        return False
