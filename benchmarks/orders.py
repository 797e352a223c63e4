"""Class orders by the name of their rule, so that a seed gives here the order that it gives in another public code."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.index import Index
from fmlora_dist.errors import UserError, nearest

__all__ = ["RULES", "SEEDED", "class_order"]

RULES = ("numpy", "sorted", "python", "list", "file:PATH")
SEEDED = ("numpy", "python")
"""Those whose order is another for another seed."""
SEED_LIMIT = 2**32
"""Seeds of numpy's legacy generator end here."""
_FILE = "file:"

Order = NDArray[np.int64]


def class_order(index: Index, rule: str, seed: int) -> tuple[str, Order]:
    """The rule as the protocol states it, and (C,) class numbers in the order in which they are learned.

    C classes have two numberings: the data set's own (sorted folder names where it has none), in which the index
    counts, and that of the split's list (`index.list_order`; the same where there is none).

    - `numpy`: ``RandomState(seed).permutation(C)``, the legacy generator, over the data set's own numbering. PILOT
      (seed 1993), SD-LoRA (1993; 1995 on ImageNet-R), LibContinual (42, 1993 or 2) and InfLoRA's one shuffled run
      (1993). mammoth's optional permutation p is another order: it is a map of labels, so that class c comes at place
      p[c], the inverse direction; write that order to a file.
    - `sorted`: the data set's own numbering, whatever the seed. InfLoRA and HiDe-Prompt, whose seeds vary only
      initialisation and batches, and L2P and DualPrompt in JAX.
    - `list`: the numbering of the split's list, whatever the seed. CODA-Prompt's repeat 0, and mammoth by default.
    - `python`: ``random.seed(seed); random.shuffle(order)`` over the numbering of the list. CODA-Prompt's repeats,
      the seed being the number of the repeat; repeat 0 is not shuffled.
    - `file:PATH`: one class a line, by its name or else by its number (from 0) in the data set's own numbering, each
      exactly once; blank lines do not count. The protocol names the file's content by its SHA-256.

    Raises:
        UserError: If the rule is unknown, the seed out of range, or the file is missing or no order of the classes.
    """
    if not 0 <= seed < SEED_LIMIT:
        raise UserError(f"order_seed: found {seed}, expected 0 to {SEED_LIMIT - 1}; choose another seed")
    n_classes = len(index.classes)
    listed = list(index.list_order) or list(range(n_classes))
    if rule.startswith(_FILE):
        return _from_file(index, Path(rule.removeprefix(_FILE)))
    if rule == "numpy":
        return rule, np.random.RandomState(seed).permutation(n_classes).astype(np.int64)
    if rule == "sorted":
        return rule, np.arange(n_classes, dtype=np.int64)
    if rule == "python" and seed:
        random.Random(seed).shuffle(listed)
    elif rule not in ("python", "list"):
        raise UserError(f"class_order: found '{rule}', expected {', '.join(RULES)}; {nearest(rule, RULES)}")
    return rule, np.array(listed, dtype=np.int64)


def _from_file(index: Index, path: Path) -> tuple[str, Order]:
    where = f"class_order: {path}"
    try:
        content = path.read_bytes()
        lines = content.decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise UserError(
            f"{where}: found no readable file ({reason}), expected one class a line; give another"
        ) from error
    n_classes = len(index.classes)
    number_of = {name: number for number, name in enumerate(index.classes)}
    line_of: dict[int, int] = {}
    for line, text in enumerate((line.strip() for line in lines), start=1):
        if not text:
            continue
        number = number_of.get(text, int(text) if text.isascii() and text.isdigit() and len(text) < 10 else n_classes)
        if number >= n_classes:
            raise UserError(
                f"{where}, line {line}: found '{text[:80]}', expected a class of '{index.name}' or a number from 0 to"
                f" {n_classes - 1}; {_suggest(text, index.classes)}"
            )
        if number in line_of:
            raise UserError(
                f"{where}, line {line}: found '{text}' again (line {line_of[number]} has it), expected each class once;"
                " remove one of the lines"
            )
        line_of[number] = line
    missing = [name for number, name in enumerate(index.classes) if number not in line_of]
    if missing:
        raise UserError(
            f"{where}, line {len(lines)}: found the end after {len(line_of)} classes, expected all {n_classes};"
            f" add '{missing[0]}'" + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
        )
    return f"{_FILE}{hashlib.sha256(content).hexdigest()[:16]}", np.array(list(line_of), dtype=np.int64)


def _suggest(name: str, classes: tuple[str, ...]) -> str:
    """The nearest class, but never a list of all of them."""
    advice = nearest(name, classes)
    return advice if advice.startswith("did") else f"the first class is '{classes[0]}'"
