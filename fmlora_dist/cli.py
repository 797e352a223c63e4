"""The command line: `fmlora run | grid | report | evaluate | export | …`, a function for each in `commands`."""

import os
import sys
import time
from collections.abc import Callable, Sequence

from fmlora_dist import __version__
from fmlora_dist.commands.data import prepare, show, verify
from fmlora_dist.commands.exports import card, export
from fmlora_dist.commands.grids import demo, grid
from fmlora_dist.commands.listing import listing
from fmlora_dist.commands.profiles import profile
from fmlora_dist.commands.reports import compare, report
from fmlora_dist.commands.runs import evaluate, run
from fmlora_dist.errors import UserError, nearest

__all__ = ["main"]

_PATIENCE = 30.0
"""Seconds in which the launcher has ended a process whose main process has failed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: 0, 1 (runs of a grid failed, or a bound of a profile is not met), 2 (a user's mistake), 75
        (another process works in the run's directory), 130 (interrupted).
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if argv[:1] == ["--version"]:
            print(f"fmlora {__version__}")
            return 0
        if not argv or argv[0] in ("-h", "--help"):
            print(_usage())
            return 0
        if argv[0] not in _COMMANDS:
            raise UserError(f"unknown command '{argv[0]}': {nearest(argv[0], _COMMANDS)}")
        return _COMMANDS[argv[0]](argv[1:])
    except UserError as error:
        if os.environ.get("RANK", "0") != "0":
            # One line, however many processes make the same mistake: the main one says it, and the launcher ends the
            # others then. Only a mistake of this process alone (its own GPU, its own file) lets it live on.
            time.sleep(_PATIENCE)
        print(f"fmlora: error: {error}", file=sys.stderr)
        return error.exit_code
    except PermissionError as error:
        if error.filename is None:  # of no file, such as a signal's: no mistake of the user's
            raise
        # Python up to 3.13 raises it where it is only asked whether a path below a closed folder exists.
        print(f"fmlora: error: {error.filename}: permission denied; choose another path, or open it", file=sys.stderr)
        return UserError.exit_code
    except KeyboardInterrupt:
        onwards = "; the same command with --resume goes on from the last checkpoint"
        print(f"fmlora: interrupted{onwards if argv[0] in _RESUMABLE else ''}", file=sys.stderr)
        return 130


_COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "run": run,
    "grid": grid,
    "demo": demo,
    "report": report,
    "compare": compare,
    "evaluate": evaluate,
    "export": export,
    "card": card,
    "prepare": prepare,
    "verify": verify,
    "show": show,
    "profile": profile,
    "list": listing,
}
_RESUMABLE = ("run", "grid", "demo")


def _usage() -> str:
    lines = [f"  {name:<10}{(command.__doc__ or '').splitlines()[0]}" for name, command in _COMMANDS.items()]
    return "usage: fmlora COMMAND … (fmlora COMMAND --help says more)\n\n" + "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
