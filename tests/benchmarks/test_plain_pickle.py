"""Hostile and damaged pickles: nothing that they name is run, and nothing but plain values comes out."""

import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import layouts
from benchmarks.plain_pickle import read_plain_pickle
from fmlora_dist.errors import UserError


def refused(content: bytes) -> str:
    with pytest.raises(UserError) as error:
        read_plain_pickle(content, "cifar/train")
    message = str(error.value)
    assert message.startswith("cifar/train")
    return message


class Calls:
    """A value that makes pickle call a function when it is read."""

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


plain = st.recursive(
    st.integers(0, 2**31 - 1) | st.binary(max_size=300),
    lambda inner: st.lists(inner) | st.dictionaries(st.binary(max_size=9), inner),
    max_leaves=20,
)


@given(plain)
def test_plain_values_are_read_as_pickle_reads_them(value):
    content = layouts.python2_pickle(value)
    assert read_plain_pickle(content, "file") == layouts.unpickled(content) == value


@given(st.integers(1, 5), st.integers(1, 5), st.randoms())
def test_arrays_are_read_as_pickle_reads_them(rows, columns, random):
    array = np.array([[random.randrange(256) for _ in range(columns)] for _ in range(rows)], dtype=np.uint8)
    content = layouts.python2_pickle({b"data": array})
    assert (read_plain_pickle(content, "file")[b"data"] == array).all()
    assert (layouts.unpickled(content)[b"data"] == array).all()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_that_a_pickle_calls_is_called(protocol, tmp_path: Path):
    mark = tmp_path / "called"
    for call in (
        Calls(os.system, f"touch {mark}"),
        Calls(os.mkdir, str(mark)),
        Calls(eval, f"open({str(mark)!r}, 'w')"),
    ):
        refused(pickle.dumps({b"data": call}, protocol))
        assert not mark.exists()


@pytest.mark.parametrize(
    "code",
    [
        b"cos\nsystem\n(U\x04truetR.",
        b"c__builtin__\neval\n(U\x011tR.",
        b"cbuiltins\ngetattr\n.",
        b"cnumpy\nload\n.",
        b"cnumpy.core.multiarray\nscalar\n.",
        b"cnumpy.core.multiarray._reconstruct\n__globals__\n.",
        b"(ios\nsystem\n.",
        b"(U\x04truecos\nsystem\no.",
        b"U\x01aQ.",
        b"\x82\x01.",
        b"cnumpy\ndtype\n(U\x01OK\x00K\x01tR.",
        b"cnumpy\ndtype\n)\x81.",
        b"cnumpy\nndarray\n(K\x01tR.",
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\n(K\x00tU\x01btR.",
        b"cnumpy.core.multiarray\n_reconstruct\n}(U\x08__code__K\x01sb.",
        b"cnumpy.core.multiarray\n_reconstruct\n}b.",
        b"}}b.",
    ],
)
def test_every_name_call_and_state_but_an_arrays_is_refused(code):
    refused(b"\x80\x02" + code)


@pytest.mark.parametrize("dtype", [object, np.float64, np.int16, "U4"])
def test_arrays_of_other_types_are_refused(dtype):
    refused(pickle.dumps({b"data": np.zeros((2, 2)).astype(dtype)}, 2))


@pytest.mark.parametrize(
    "shape", [(2**31 - 1, 2**16 - 1), (4, 4), (0,), (3, -4), (12, 1, 1, 1, 1, 1, 1, 1, 1), (b"12",)]
)
def test_arrays_of_other_shapes_than_their_bytes_have_are_refused(shape):
    content = layouts.python2_pickle(np.zeros((3, 4), dtype=np.uint8))

    def number(length: int | bytes) -> bytes:
        return b"U\x0212" if isinstance(length, bytes) else b"J" + struct.pack("<i", length)

    assert content.count(b"K\x03K\x04\x86") == 1
    refused(content.replace(b"K\x03K\x04\x86", b"(" + b"".join(map(number, shape)) + b"t"))


def test_a_memo_slot_of_any_number_costs_one_entry():
    huge = b"\x80\x02U\x01ar\xff\xff\xff\xff0."
    assert "instruction" in refused(huge)
    assert read_plain_pickle(b"\x80\x02U\x01ar\xff\xff\xff\xff.", "file") == b"a"


@pytest.mark.parametrize("length", [b"T\xff\xff\xff\xff", b"T\xff\xff\xff\x7f", b"X\xff\xff\xff\xff", b"U\xff"])
def test_a_length_beyond_the_file_is_refused_before_memory_is_taken(length):
    assert "length" in refused(b"\x80\x02" + length + b"abc.")


@pytest.mark.parametrize(
    "content", [b"", b".", b"\x80\x02", b"\x80\x02.", b"\x80\x02K\x01K\x02.", b"\x80\x02K\x01.more"]
)
def test_no_value_or_more_than_one_is_refused(content):
    refused(content)


def test_a_value_that_holds_itself_does_no_harm():
    value = read_plain_pickle(b"\x80\x02]q\x01h\x01a.", "file")
    assert value[0] is value


WHOLE = layouts.cifar100(train=2, test=1)["cifar-100-python/meta"] + b""
ARRAY = layouts.python2_pickle({b"data": np.zeros((2, 3), dtype=np.uint8), b"fine_labels": [1, 2]})


@settings(max_examples=500)
@given(st.sampled_from([WHOLE, ARRAY]), st.data())
def test_a_damaged_pickle_is_refused_or_gives_plain_values(content, data):
    damaged = bytearray(content)
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        damaged[place] = data.draw(st.integers(0, 255))
    del damaged[data.draw(st.integers(1, len(content))) :]
    try:
        value = read_plain_pickle(bytes(damaged), "file")
    except UserError as error:
        assert str(error).startswith("file")
    else:
        assert_plain(value)


def assert_plain(value: Any) -> None:
    if isinstance(value, dict):
        for key, entry in value.items():
            assert_plain(key)
            assert_plain(entry)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            assert_plain(entry)
    elif isinstance(value, np.ndarray):
        assert value.dtype == np.uint8
    else:
        assert value is None or isinstance(value, (int, bytes, str))
