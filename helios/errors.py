"""What a user can put right is a UserError; everything else is a bug or a broken machine."""


class UserError(Exception):
    """Bad input, with what was given, what was expected and what to do, in one line.

    The command line prints it without a traceback and exits with 2.
    """
