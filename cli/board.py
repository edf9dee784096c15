"""helios-board: show all runs in a browser, as they go on."""

from __future__ import annotations

import os
from pathlib import Path

import click

from helios.cli.common import Given, HeliosCommand, whole
from helios.errors import UserError


@click.command(cls=HeliosCommand)
@click.option("--runs", metavar="DIR", type=Given(Path), default="runs", show_default=True,
              help="Folder whose run directories are shown.")
@click.option("--db", metavar="FILE", type=Given(Path),
              help="The board's database.  [default: board.sqlite in the folder of --runs]")
@click.option("--host", metavar="H", type=Given(), default="127.0.0.1", show_default=True,
              help="Address to listen at; any but this machine's own needs a token.")
@click.option("--port", metavar="P", type=whole(0, 65535), default=8787, show_default=True, help="0: a free one.")
@click.option("--token-file", metavar="FILE", type=Given(Path),
              help="File with the token that writers send, and beyond this machine readers, too.  "
                   "[default: the variable HELIOS_TOKEN]")
def main(runs: Path, db: Path | None, host: str, port: int, token_file: Path | None) -> None:
    """Show the runs of a folder, and those that are sent here, until Ctrl-C."""
    try:
        from helios.train.board.serve import serve
    except ImportError as error:
        raise UserError(f"the board needs {error.name}; install it with: pip install 'helios-gpt[board]'") from error

    token = (token_file.read_text("latin-1") if token_file else os.environ.get("HELIOS_TOKEN", "")).strip()
    if token_file and not token:
        raise UserError(f"{token_file} is empty; write a token into it, such as openssl rand -hex 32 makes")
    if not (token.isascii() and token.isprintable()):
        raise UserError(f"{token_file or 'HELIOS_TOKEN'} has characters that no token has; give one line of ASCII")
    serve(runs, db or runs / "board.sqlite", host, port, token or None, lambda line: click.echo(line))


if __name__ == "__main__":
    main()
