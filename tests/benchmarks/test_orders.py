"""Class orders: a seed gives the order that it gives in the code that the rule is taken from."""

import hashlib
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.orders import class_order
from fmlora_dist.errors import UserError
from made_index import make_index

CLASSES = make_index(5, 1, 1)


def order(rule: str, seed: int = 0, n_classes: int = 10, list_order: tuple[int, ...] = ()) -> list[int]:
    return class_order(make_index(n_classes, 1, 1, list_order), rule, seed)[1].tolist()


def test_numpy_gives_the_published_orders() -> None:
    assert order("numpy", 1993, 200)[:6] == [168, 136, 51, 9, 183, 101]  # logs of InfLoRA and SD-LoRA
    assert order("numpy", 1993, 100) == np.random.RandomState(1993).permutation(100).tolist()
    assert order("numpy", 0, 8) == [6, 2, 1, 7, 3, 0, 5, 4]
    np.random.seed(42)  # as the codes draw it, by the global generator
    assert order("numpy", 42, 345) == np.random.permutation(345).tolist()


def test_sorted_is_the_data_sets_own_numbering_whatever_the_seed_and_the_list() -> None:
    assert order("sorted", 7, 4, (3, 1, 0, 2)) == [0, 1, 2, 3]


def test_list_is_the_numbering_of_the_splits_list_and_where_there_is_none_the_data_sets_own() -> None:
    assert order("list", 7, 4, (3, 1, 0, 2)) == [3, 1, 0, 2]
    assert order("list", 7, 4) == [0, 1, 2, 3]


def test_python_shuffles_the_lists_numbering_but_not_for_repeat_0() -> None:
    assert order("python", 1) == [6, 8, 9, 7, 5, 3, 0, 4, 1, 2]  # python -c "random.seed(1); random.shuffle(order)"
    assert order("python", 2) == [5, 9, 3, 4, 6, 7, 2, 8, 1, 0]
    listed = (2, 9, 4, 7, 0, 1, 8, 3, 6, 5)
    assert order("python", 1, list_order=listed) == [listed[n] for n in order("python", 1)]
    assert order("python", 0, list_order=listed) == list(listed)


@given(st.integers(1, 60), st.integers(0, 2**32 - 1), st.sampled_from(["numpy", "sorted", "list", "python"]))
def test_every_rule_gives_each_class_once_and_the_same_again(n_classes: int, seed: int, rule: str) -> None:
    before = random.getstate()
    found = order(rule, seed, n_classes, tuple(reversed(range(n_classes))))
    assert sorted(found) == list(range(n_classes))
    assert found == order(rule, seed, n_classes, tuple(reversed(range(n_classes))))
    assert random.getstate() == before, "nobody else's generator is touched"


@given(st.permutations(range(6)), st.lists(st.booleans(), min_size=6, max_size=6))
def test_a_file_gives_its_order_by_names_or_numbers(tmp_path_factory, wanted, named) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path_factory.mktemp("order") / "order.txt"
    path.write_text("".join(f"class{n}\n" if name else f" {n}\r\n\n" for n, name in zip(wanted, named, strict=True)))
    rule, found = class_order(make_index(6, 1, 1), f"file:{path}", 3)
    assert found.tolist() == list(wanted)
    assert rule == "file:" + hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def test_in_a_file_a_name_goes_before_a_number(tmp_path: Path) -> None:
    (tmp_path / "order").write_text("0\n1\n2\n")
    index = replace(make_index(3, 1, 1), classes=("2", "0", "1"))
    assert class_order(index, f"file:{tmp_path / 'order'}", 0)[1].tolist() == [1, 2, 0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("class0\nclas1\n", ["line 2", "found 'clas1'", "number from 0 to 4", "did you mean 'class1'?"]),
        ("xyz\n", ["line 1", "found 'xyz'", "the first class is 'class0'"]),
        ("0\n5\n", ["line 2", "found '5'"]),
        ("-1\n", ["line 1", "found '-1'"]),
        ("9" * 5000, ["line 1", "found '999"]),
        ("class1\n\n1\n", ["line 3", "found '1' again", "line 1 has it"]),
        ("0\n1\n2\n", ["line 3", "the end after 3 classes", "all 5", "add 'class3' and 1 more"]),
        ("0\n1\n2\n3\n", ["add 'class4'"]),
        ("", ["line 0", "the end after 0 classes"]),
        (b"\xff\xfe", ["no UTF-8 text"]),
        (None, ["No such file"]),
    ],
)
def test_a_wrong_file_is_named_with_its_line(text: str | bytes | None, words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "order.txt"
    if text is not None:
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(UserError) as caught:
        class_order(CLASSES, f"file:{path}", 0)
    message = str(caught.value)
    assert message.startswith(f"class_order: {path}") and all(word in message for word in words), message
    assert len(message) < 500


@pytest.mark.parametrize(
    ("rule", "seed", "words"),
    [
        ("numpi", 0, ["class_order: found 'numpi'", "did you mean 'numpy'?"]),
        ("file", 0, ["class_order: found 'file'", "did you mean 'file:PATH'?"]),
        ("", 0, ["class_order: found ''", "known are"]),
        ("numpy", -1, ["order_seed", "-1"]),
        ("python", 2**32, ["order_seed", "4294967296"]),
    ],
)
def test_an_unknown_rule_or_seed_is_refused(rule: str, seed: int, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        class_order(CLASSES, rule, seed)
    assert all(word in str(caught.value) for word in words), str(caught.value)
