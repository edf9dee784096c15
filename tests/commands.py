"""Commands as a user meets them."""

from __future__ import annotations

import click
from click.testing import CliRunner, Result


def invoke(command: click.Command, *args: object) -> Result:
    return CliRunner().invoke(command, [str(a) for a in args])


def refused(result: Result, *words: str, stdout: str | None = "") -> None:
    """Exit 2, and one line that says it. stdout: what came before; None: anything."""
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
    assert all(word in result.stderr for word in words), result.stderr
    assert isinstance(result.exception, SystemExit)
    assert stdout is None or result.stdout == stdout
