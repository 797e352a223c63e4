"""What is generated in README.md and docs/ is up to date."""

import json
import re
import shutil
from pathlib import Path

import pytest

from fmlora_dist.report import write_report
from fmlora_dist.report.documents import PAGES, REPORTED, RESULTS, fill_in, report_on
from running import REPOSITORY

DEMO = "<!-- table:demo -->\n"


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_what_the_command_writes(name: str) -> None:
    page = (REPOSITORY / name).read_text()
    assert fill_in(page, REPOSITORY) == page, "run: python -m fmlora_dist.report.documents"


@pytest.mark.parametrize("name", REPORTED)
def test_a_committed_report_is_what_the_command_writes(name: str, tmp_path: Path) -> None:
    folder = REPOSITORY / RESULTS / name
    written = {file.name: file for file in write_report(report_on(folder), tmp_path)}
    assert {file.name for file in (folder / "report").iterdir()} == {*written}
    for form in ("tables.md", "tables.tex", "tables.csv"):  # figures are of one version of matplotlib
        assert (folder / "report" / form).read_bytes() == written[form].read_bytes(), f"{form}: write it anew"


def test_every_figure_that_a_page_shows_is_there() -> None:
    shown = [
        (REPOSITORY / page).parent / target
        for page in PAGES
        for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", (REPOSITORY / page).read_text())
    ]
    assert shown
    assert [file for file in shown if not file.is_file()] == []


def test_a_table_that_was_changed_by_hand_is_found() -> None:
    page = (REPOSITORY / "docs" / "study.md").read_text()
    start = page.index(DEMO) + len(DEMO)
    assert fill_in(page[:start] + "our method wins\n" + page[start:], REPOSITORY) == page


def test_the_demos_table_has_a_row_for_each_committed_run() -> None:
    table = (REPOSITORY / "docs" / "study.md").read_text().partition(DEMO)[2].partition("\n\n")[0]
    assert len(table.splitlines()) == 2 + len([*(REPOSITORY / RESULTS / "demo").rglob("result.json")]) == 7


def test_a_result_that_cannot_be_read_is_not_passed_over(tmp_path: Path) -> None:
    broken = tmp_path / RESULTS / "demo" / "one" / "result.json"
    broken.parent.mkdir(parents=True)
    broken.write_text("{}")
    with pytest.raises(ValueError, match="schema"):
        fill_in(f"{DEMO}<!-- /table -->", tmp_path)


def test_a_word_of_its_title_chooses_a_further_table() -> None:
    page = fill_in("<!-- table:demo cost -->\n<!-- /table -->", REPOSITORY)
    assert "| method | trained (k) | stored (k) |" in page
    with pytest.raises(ValueError):
        fill_in("<!-- table:demo nothing -->\n<!-- /table -->", REPOSITORY)


def test_a_table_of_an_unfinished_grid_says_so(tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / RESULTS / "demo", tmp_path / RESULTS / "demo")
    place = {"benchmark": "icons_mini", "scenario": "cil", "n_tasks": 5}
    names = [folder.name for folder in (tmp_path / RESULTS / "demo").glob("icons*")]
    done = [{"run": name, **place, "method": name.split("-")[2]} for name in names]
    missing = {"run": "never", **place, "method": "joint"}
    event = {"event": "grid", "grid": "demo", "plan": [*done, missing]}
    (tmp_path / RESULTS / "demo" / "events.jsonl").write_text(json.dumps(event) + "\n")
    table = fill_in(f"{DEMO}<!-- /table -->", tmp_path)
    assert "**Unfinished: 5 of 6 planned runs are complete; missing: joint on icons_mini N=5 (1 of 1).**" in table
    assert "| *joint (upper bound)* [6] | – | – |" in table
