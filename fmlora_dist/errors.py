"""The one exception that a user's mistake raises: the command line prints its single line and exits with code 2."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import ClassVar

__all__ = ["InUseError", "UserError", "explain_memory", "nearest"]


class UserError(ValueError):
    """A mistake of the user's: what is wrong, where, what was found, what was expected, what to do; in one line."""

    exit_code: ClassVar[int] = 2

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


class InUseError(UserError):
    """Another process works on it at this moment: no mistake, and over once that process has ended."""

    exit_code: ClassVar[int] = 75  # EX_TEMPFAIL of sysexits.h


@contextmanager
def explain_memory() -> Iterator[None]:
    """Memory that runs out, of a GPU or of the machine, becomes a ``UserError`` that says what to do."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # torch.OutOfMemoryError by its name, since torch takes seconds to import; the CPU's allocator has no class.
        text = str(error)
        named = type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError)
        if not named and "can't allocate memory" not in text:
            raise
        raise UserError(
            f"out of memory: {text.splitlines()[0][:200] if text else 'no more is there'}; use a smaller --batch-size "
            "or --cache-budget, more GPUs for the run, or fewer runs on one GPU"
        ) from error


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest known one, or all of them when none is near.

    Of dotted names the nearest is one that ends so: of ``--lr`` it is ``--train.lr``.
    """
    known = sorted(known)
    ends = [each for each in known if each.rpartition(".")[2] == name.lstrip("-")]
    close = ends or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"known are: {', '.join(known)}"
