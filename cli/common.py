"""What every Helios command shares: how errors leave the program."""

import click

from helios.errors import UserError


class HeliosCommand(click.Command):
    """A UserError raised in the command's body leaves as one line on stderr and exit code 2, Ctrl-C as 130.

    click itself gives bad usage 2; any other exception is a bug, and leaves as Python's traceback and 1.
    """

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except UserError as error:
            click.echo(f"error: {' '.join(str(error).splitlines())}", err=True)
            ctx.exit(2)
        except KeyboardInterrupt:
            ctx.exit(130)


class HeliosGroup(HeliosCommand, click.Group):
    """The same for a group; its commands may be plain click commands."""
