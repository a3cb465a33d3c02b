"""A command in this process, up to its exit status."""

import sys

from app.cli import build_parser
from app.commands.endings import CommandError


def run_command(*words: str) -> int:
    """Run a command as the interpreter does: it prints a CommandError and exits with 1."""
    arguments = build_parser().parse_args(words)
    try:
        return arguments.run(arguments)
    except CommandError as error:
        sys.stderr.write(f"{error}\n")
        return 1
