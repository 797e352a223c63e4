"""What `--split` and `--split-seed` accept."""

from pathlib import Path

import pytest

from benchmarks.preparation.splits import Split, parse_split
from fmlora_dist.errors import UserError

CHOICES = ("coda", "random", "folders")


def test_a_data_set_with_one_split_needs_no_choice() -> None:
    assert parse_split(None, None, (), "cub200") == Split(kind="official")
    with pytest.raises(UserError, match=r"found 'random', expected none; leave --split out, 'cub200' has its own"):
        parse_split("random", None, (), "cub200")


def test_a_data_set_without_a_split_of_its_own_lists_the_choices() -> None:
    with pytest.raises(
        UserError, match="found none, expected one of --split coda:FILE, --split random, --split folders"
    ):
        parse_split(None, None, CHOICES, "imagenet_r")
    with pytest.raises(UserError, match=r"found 'randon', .*did you mean 'random'"):
        parse_split("randon", None, CHOICES, "imagenet_r")


def test_a_seed_is_for_random_splits_only() -> None:
    assert parse_split("random", 3, CHOICES, "x") == Split(kind="random", seed=3)
    assert parse_split("random", None, CHOICES, "x") == Split(kind="random", seed=0)
    for text, seed in (("folders", 0), ("random", -1)):
        with pytest.raises(UserError, match=f"split-seed: found {seed}"):
            parse_split(text, seed, CHOICES, "x")


@pytest.mark.parametrize("text", ["random:x", "random:", "folders:x", "coda", "coda:"])
def test_lists_are_given_where_they_are_read_and_nowhere_else(text: str) -> None:
    with pytest.raises(UserError, match=f"split: found '{text}', expected --split"):
        parse_split(text, None, CHOICES, "x")


def test_either_of_two_lists_names_both(tmp_path: Path) -> None:
    train, test = tmp_path / "imagenet-r_train.yaml", tmp_path / "imagenet-r_test.yaml"
    for path in (train, test):
        path.write_text("x")
    for text in (f"coda:{train}", f"coda:{test}", f"coda:{train},{test}"):
        assert parse_split(text, None, CHOICES, "x").files == (train, test)
    test.unlink()
    with pytest.raises(UserError, match=f"found no list {test}"):
        parse_split(f"coda:{train}", None, CHOICES, "x")
    alone = tmp_path / "a.yaml"
    with pytest.raises(UserError, match=f"found no list {alone}"):
        parse_split(f"coda:{alone}", None, CHOICES, "x")
    alone.write_text("x")
    with pytest.raises(UserError, match=f"found 1 list in '{alone}', expected one for training and one for test"):
        parse_split(f"coda:{alone}", None, CHOICES, "x")
