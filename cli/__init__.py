"""Command-line tools: one click command a file."""

import sys
from types import TracebackType


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    # Ctrl-C while modules are still loaded; Python itself then ends by SIGINT, which a shell shows as 130.
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _report
