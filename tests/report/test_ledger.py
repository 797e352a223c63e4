"""The ledger is what its sources say, and its page is up to date."""

import csv
import re
import shutil
from pathlib import Path

import pytest

import fmlora_dist.report
from fmlora_dist.registry import list_methods
from fmlora_dist.report.ledger import PAPER, ledger
from running import command, finished, result, run_arguments

PUBLISHED = Path(fmlora_dist.report.__file__).parent / "published.csv"


def cells(text: str, section: str, method: str) -> list[str]:
    """(over tasks, over images, who, published) of a row."""
    part = text.partition(f"### {section}\n")[2].partition("\n### ")[0]
    (row,) = re.findall(rf"^\| `{method}` \|(.*)\|$", part, re.MULTILINE)
    return [cell.strip() for cell in row.split("|")]


def test_every_method_has_a_row_for_every_column_of_the_paper_and_without_runs_a_blank_one(tmp_path: Path) -> None:
    text = ledger(tmp_path / "nothing")
    for column in PAPER:
        scenario = "" if column.scenario == "cil" else f" ({column.scenario})"
        for method in list_methods():
            assert cells(text, f"{column.benchmark}{scenario}, N = {column.n_tasks}", method)[:3] == ["", "", ""]


def test_every_published_figure_of_a_method_of_ours_stands_in_it_with_its_source(tmp_path: Path) -> None:
    text, methods = ledger(tmp_path), set(list_methods())
    sources = dict(re.findall(r"^(\d+)\. (.*)$", text, re.MULTILINE))
    lines = [line for line in csv.DictReader(PUBLISHED.open()) if line["method"] in methods]
    assert len(lines) > 30
    for line in lines:
        section = f"{line['benchmark']}, N = {line['n_tasks']}"
        entries = cells(text, section, line["method"])[3].split("<br>")
        found = [entry for entry in entries if entry.startswith(line["acc_mean"]) and line["aaa_mean"] in entry]
        texts = [sources[re.findall(r"\[(\d+)\]", entry)[0]] for entry in found]
        assert any(source.startswith(line["source"]) for source in texts), line


def test_published_methods_go_by_our_names() -> None:
    plain = {name.replace("_", "") for name in list_methods()} - set(list_methods())
    named = {line["method"] for line in csv.DictReader(PUBLISHED.open())}
    assert not named & plain, "else their numbers would not stand beside ours"


def test_a_run_stands_in_it_with_who_ran_it_on_what(tmp_path: Path) -> None:
    shutil.copytree(finished("frozen"), tmp_path / "study" / "one")
    assert command(run_arguments(tmp_path / "study" / "two", method="frozen", seed=1)).code == 0
    assert command(run_arguments(tmp_path / "study" / "search", method="frozen", train__validation=0.25)).code == 0
    assert cells(ledger(tmp_path), "icons, N = 3", "frozen")[2].startswith("not stated; ")
    (tmp_path / "study" / "ran_by.txt").write_text("somebody, a machine\n")
    over_tasks, over_images, who, published = cells(ledger(tmp_path), "icons, N = 3", "frozen")
    metrics = [result(tmp_path / "study" / name)["metrics"] for name in ("one", "two")]
    for text, names in ((over_tasks, ("acc", "aaa")), (over_images, ("acc_samples", "aaa_samples"))):
        for part, name in zip(text.split(" / "), names, strict=True):
            one, two = (each[name] for each in metrics)
            mean, std = map(float, part.split(" ± "))
            assert mean == pytest.approx((one + two) / 2, abs=0.0051)
            assert std == pytest.approx(abs(one - two) / 2**0.5, abs=0.0051)
    assert who == "somebody, a machine; vit_tiny_patch16_224; 2 seeds", "the search's run is not among them"
    assert published == ""


def test_recipes_of_one_method_stand_apart_and_say_in_what_they_differ(tmp_path: Path) -> None:
    shutil.copytree(finished("frozen"), tmp_path / "one")
    assert command(run_arguments(tmp_path / "two", method="frozen", train__lr=0.5)).code == 0
    over_tasks, _, who, _ = cells(ledger(tmp_path), "icons, N = 3", "frozen")
    accuracies = [f"{result(tmp_path / name)['metrics']['acc']:.2f}" for name in ("one", "two")]
    assert [line.partition(" / ")[0] for line in over_tasks.split("<br>")] == accuracies
    rates = [result(tmp_path / name)["config"]["train"]["lr"] for name in ("one", "two")]
    assert [line.rpartition("; ")[2] for line in who.split("<br>")] == [f"train.lr {rate}" for rate in rates]


def test_runs_of_an_ablation_have_no_line(tmp_path: Path) -> None:
    shutil.copytree(finished("frozen"), tmp_path / "study" / "one")
    without = ledger(tmp_path)
    assert cells(without, "icons, N = 3", "frozen")[0]
    shutil.copytree(finished("frozen"), tmp_path / "ablation-parts" / "one")
    assert ledger(tmp_path) == without


def test_a_result_that_cannot_be_read_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "result.json").write_text("{")
    with pytest.raises(ValueError, match="JSON"):
        ledger(tmp_path)
