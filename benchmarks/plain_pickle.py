"""Plain values out of a Python-2 pickle, read and not unpickled: nothing that the file names is imported or called.

`pickle.Unpickler`, even with a strict `find_class`, lets a file make it allocate without bound (a memo slot of any
number) and build on whatever it was given. The published CIFAR files use two dozen of pickle's instructions, so those
are read here, and every other one is refused.
"""

from __future__ import annotations

import math
import pickle
import struct
from collections.abc import Callable
from enum import Enum
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from fmlora_dist.errors import UserError

__all__ = ["read_plain_pickle"]


def read_plain_pickle(content: bytes, where: str) -> Any:
    """The value in a pickle of protocol 2, as Python 2 wrote it.

    Args:
        content: The file.
        where: Its name, for errors.

    Returns:
        Dicts, lists, tuples, ints, booleans, None, bytes (Python 2's str), str, and numpy arrays of uint8.

    Raises:
        UserError: If the file holds anything else, or is damaged.
    """
    try:
        return _Machine(content, where).run()
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, struct.error) as error:
        raise UserError(
            f"{where}: found a damaged pickle ({type(error).__name__}), expected the file as published; download it"
            " again"
        ) from error


class _Name(Enum):
    """The only names that a pickle may mention. They stand for themselves; none is ever looked up."""

    RECONSTRUCT = b"numpy.core.multiarray", b"_reconstruct"
    NDARRAY = b"numpy", b"ndarray"
    DTYPE = b"numpy", b"dtype"


class _Unfilled(Enum):
    """What a call of one of the names leaves, until the state that follows says what it is."""

    ARRAY = 0
    UINT8 = 1


class _Machine:
    """Pickle's stack machine, cut down to what plain values need."""

    def __init__(self, content: bytes, where: str):
        self._content, self._where, self._at = content, where, 0
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        while (code := self._take(1)) != pickle.STOP:
            instruction = _INSTRUCTIONS.get(code)
            if instruction is None:
                self._refuse(f"pickle instruction {code!r}", "plain values only")
            instruction(self)
        value = self._stack.pop()
        if self._stack or self._at != len(self._content):
            self._refuse("more than one value", "one")
        return value

    def _refuse(self, found: str, expected: str) -> NoReturn:
        raise UserError(
            f"{self._where}, byte {self._at}: found {found}, expected {expected}; the file is not the published one,"
            " download it again"
        )

    def _take(self, n: int) -> bytes:
        if not 0 <= n <= len(self._content) - self._at:
            self._refuse(f"a length of {n} bytes", f"at most the {len(self._content) - self._at} that are left")
        self._at += n
        return self._content[self._at - n : self._at]

    def _number(self, layout: str) -> int:
        (value,) = struct.unpack(layout, self._take(struct.calcsize(layout)))
        return int(value)

    def _line(self) -> bytes:
        end = self._content.index(b"\n", self._at)
        line = self._take(end - self._at)
        self._at += 1
        return line

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop_to_mark(self) -> list[Any]:
        start = self._marks.pop()
        if start > len(self._stack):
            raise IndexError
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def _pop(self, n: int) -> tuple[Any, ...]:
        if n > len(self._stack):
            raise IndexError
        values = tuple(self._stack[len(self._stack) - n :])
        del self._stack[len(self._stack) - n :]
        return values

    # -- instructions ---------------------------------------------------------------------------------------------

    def protocol(self) -> None:
        if (found := self._number("<B")) != 2:
            self._refuse(f"protocol {found}", "2")

    def mark(self) -> None:
        self._marks.append(len(self._stack))

    def text(self, layout: str) -> None:
        self._push(self._take(self._number(layout)))

    def put(self, layout: str) -> None:
        self._memo[self._number(layout)] = self._stack[-1]

    def get(self, layout: str) -> None:
        self._push(self._memo[self._number(layout)])

    def append(self, values: list[Any]) -> None:
        if not isinstance(self._stack[-1], list):
            self._refuse("an appending to no list", "a list")
        self._stack[-1].extend(values)

    def set_items(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict) or len(values) % 2:
            self._refuse("keys and values without a dict", "a dict")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not isinstance(key, (bytes, str, int)):
                self._refuse(f"a key of type {type(key).__name__}", "a name or a number")
            target[key] = value

    def name(self) -> None:
        named = self._line(), self._line()
        known = {name.value: name for name in _Name}
        if named not in known:
            self._refuse(f"the name {b'.'.join(named)[:80]!r}", "none but those of a numpy array")
        self._push(known[named])

    def call(self) -> None:
        callee, arguments = self._pop(2)
        if callee is _Name.RECONSTRUCT and arguments == (_Name.NDARRAY, (0,), b"b"):
            self._push(_Unfilled.ARRAY)
        elif callee is _Name.DTYPE and arguments == (b"u1", 0, 1):
            self._push(_Unfilled.UINT8)
        else:
            self._refuse("a call", "the making of an array of uint8 and no other call")

    def fill(self) -> None:
        target, state = self._pop(2)
        if target is _Unfilled.UINT8:
            if state != (3, b"|", None, None, None, -1, -1, 0):
                self._refuse("another state of a dtype", "that of uint8")
            self._push(target)
        elif target is _Unfilled.ARRAY:
            self._push(self._array(state))
        else:
            self._refuse("a state", "the state of an array of uint8")

    def _array(self, state: Any) -> NDArray[np.uint8]:
        expected = "an array of uint8 whose shape fits its bytes"
        if not isinstance(state, tuple) or len(state) != 5 or state[0] != 1 or state[2] is not _Unfilled.UINT8:
            self._refuse("another state of an array", expected)
        _, shape, _, by_columns, raw = state
        if not isinstance(raw, bytes) or not isinstance(shape, tuple) or len(shape) > 8:
            self._refuse("an array without bytes or shape", expected)
        if not all(type(length) is int and length > 0 for length in shape) or math.prod(shape) != len(raw):
            self._refuse(f"an array of another shape than its {len(raw)} bytes have", expected)
        return np.frombuffer(raw, dtype=np.uint8).reshape(shape, order="F" if by_columns is True else "C")


_INSTRUCTIONS: dict[bytes, Callable[[_Machine], None]] = {
    pickle.PROTO: _Machine.protocol,
    pickle.MARK: _Machine.mark,
    pickle.NONE: lambda machine: machine._push(None),
    pickle.NEWTRUE: lambda machine: machine._push(True),
    pickle.NEWFALSE: lambda machine: machine._push(False),
    pickle.BININT: lambda machine: machine._push(machine._number("<i")),
    pickle.BININT1: lambda machine: machine._push(machine._number("<B")),
    pickle.BININT2: lambda machine: machine._push(machine._number("<H")),
    pickle.SHORT_BINSTRING: lambda machine: machine.text("<B"),
    pickle.BINSTRING: lambda machine: machine.text("<i"),
    pickle.BINUNICODE: lambda machine: machine._push(machine._take(machine._number("<I")).decode("utf-8")),
    pickle.EMPTY_LIST: lambda machine: machine._push([]),
    pickle.EMPTY_DICT: lambda machine: machine._push({}),
    pickle.EMPTY_TUPLE: lambda machine: machine._push(()),
    pickle.TUPLE1: lambda machine: machine._push(machine._pop(1)),
    pickle.TUPLE2: lambda machine: machine._push(machine._pop(2)),
    pickle.TUPLE3: lambda machine: machine._push(machine._pop(3)),
    pickle.TUPLE: lambda machine: machine._push(tuple(machine._pop_to_mark())),
    pickle.APPEND: lambda machine: machine.append(list(machine._pop(1))),
    pickle.APPENDS: lambda machine: machine.append(machine._pop_to_mark()),
    pickle.SETITEM: lambda machine: machine.set_items(list(machine._pop(2))),
    pickle.SETITEMS: lambda machine: machine.set_items(machine._pop_to_mark()),
    pickle.BINPUT: lambda machine: machine.put("<B"),
    pickle.LONG_BINPUT: lambda machine: machine.put("<I"),
    pickle.BINGET: lambda machine: machine.get("<B"),
    pickle.LONG_BINGET: lambda machine: machine.get("<I"),
    pickle.GLOBAL: _Machine.name,
    pickle.REDUCE: _Machine.call,
    pickle.BUILD: _Machine.fill,
}
