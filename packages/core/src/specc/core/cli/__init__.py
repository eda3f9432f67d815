"""The command line: a file a command, imported when it is called."""

from specc.core.cli.main import main

__all__ = ["main"]
