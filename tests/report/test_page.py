"""The page: it holds what the tables hold, in valid HTML, and nothing that a run says becomes more than text."""

import base64
import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from fmlora_dist.report import make_report, read_runs, write_report
from fmlora_dist.report.page import empty_page, live
from result_files import write_whole

Write = Callable[..., Path]
VOID = {"meta", "input", "br", "link", "img", "hr"}
EVIL = "</script><script>alert(1)</script><!-- <b>&amp;'\""


class Page(HTMLParser):
    """Refuses what is not well nested; collects texts, ids, links and scripts."""

    def __init__(self, html: str):
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"line {self.getpos()[0]}"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif data.strip():
            self.texts.append(data.strip())

    def values(self, name: str) -> list[str]:
        return [value or "" for _, attribute, value in self.attributes if attribute == name]


def runs_of(page: Page) -> list[dict[str, Any]]:
    (data,) = [text for attributes, text in page.scripts if attributes.get("id") == "runs"]
    found: list[dict[str, Any]] = json.loads(data)
    return found


@pytest.fixture(scope="module")
def written(rich_grid: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a report of all its forms."""
    folder = tmp_path_factory.mktemp("report")
    write_report(make_report(read_runs([rich_grid])), folder)
    return folder


def page_of(folder: Path) -> str:
    """The page of the runs in a folder."""
    write_report(make_report(read_runs([folder])), folder / "report")
    return (folder / "report" / "index.html").read_text()


def test_the_page_holds_every_number_of_the_tables(written: Path) -> None:
    markdown = (written / "tables.md").read_text().replace("\\*", "*")
    figure = r"-?\d+\.\d+(?: ± \d+\.\d+)?"
    cells = Counter(
        number
        for row in re.findall(r"^\|.*\|$", markdown, re.M)
        for cell in row.split("|")
        for number in re.findall(rf"^[^\w-]*(?:<u>)?({figure})(?:</u>)?\W*$", cell.strip())
    )
    assert cells.total() > 60
    texts = Counter(Page((written / "index.html").read_text()).texts)
    assert {number: count for number, count in cells.items() if texts[number] < count} == {}
    notes = re.findall(r"^- (.*)$", markdown, re.M)
    assert notes
    assert [note for note in notes if note.replace("&lt;", "<").replace("\\|", "|") not in texts] == []


def test_best_and_second_are_marked_and_cells_know_their_runs(written: Path) -> None:
    html = (written / "index.html").read_text()
    page = Page(html)
    runs = runs_of(page)
    assert len(runs) == len({run["facts"]["folder"] for run in runs}) == 26
    best = re.search(r'<button type="button" class="best" data-runs="([\d ]+)" data-measure="acc"[^>]*>([\d.]+)', html)
    assert best
    members = [runs[int(number)] for number in best[1].split()]
    assert len(members) == 2
    assert sum(float(run["figures"]["acc"]) for run in members) / 2 == pytest.approx(float(best[2]), abs=0.011)
    assert 'class="second"' in html


def test_a_report_among_its_runs_names_them_from_there_and_any_other_by_their_whole_paths(
    rich_grid: Path, tmp_path: Path
) -> None:
    shutil.copytree(rich_grid, tmp_path / "grid")
    runs = runs_of(Page(page_of(tmp_path / "grid")))
    assert runs
    for run in runs:
        assert not Path(run["facts"]["folder"]).is_absolute()
        assert (tmp_path / "grid" / "report" / run["facts"]["folder"] / "result.json").is_file()
    write_report(make_report(read_runs([tmp_path / "grid"])), tmp_path / "far" / "away")
    far = runs_of(Page((tmp_path / "far" / "away" / "index.html").read_text()))
    assert len(far) == len(runs)
    assert all(Path(run["facts"]["folder"]).is_relative_to((tmp_path / "grid").resolve()) for run in far)


def test_the_page_is_well_formed_and_no_id_comes_twice(written: Path) -> None:
    html = (written / "index.html").read_text()
    page = Page(html)
    ids = page.values("id")
    assert len(ids) > 10
    assert [name for name, count in Counter(ids).items() if count > 1] == []
    referred = {*re.findall(r"url\(#([^)]+)\)", html)}
    referred |= {link[1:] for link in page.values("xlink:href") if link.startswith("#")}
    assert referred
    assert referred <= {*ids}


def test_all_that_the_page_refers_to_lies_beside_it(written: Path) -> None:
    page = Page((written / "index.html").read_text())
    links = page.values("href")
    assert len(links) > 10
    assert [link for link in links if not (written / link).is_file()] == []
    assert page.values("src") == []
    assert all(value.startswith(("#", "data:image/png;base64,")) for value in page.values("xlink:href"))


def test_only_the_pages_own_script_may_run(written: Path) -> None:
    page = Page((written / "index.html").read_text())
    (policy,) = [value for value in page.values("content") if "default-src" in value]
    assert policy.startswith("default-src 'none'; ")
    assert "connect-src" not in policy
    (script,) = [text for attributes, text in page.scripts if not attributes]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy


def test_nothing_that_a_run_says_becomes_more_than_text(write_run: Write, tmp_path: Path) -> None:
    for seed in range(2):
        write_run(EVIL, seed, 50.0, benchmark=EVIL, config={"out": EVIL}, accuracy_matrix=[[50.0]], n_tasks=1, git=EVIL)
        write_run("lora", seed, 40.0, benchmark=EVIL, n_tasks=1, recipe={"transform": EVIL})
    html = page_of(tmp_path)
    page = Page(html)
    assert len(page.scripts) == 2
    assert EVIL in page.texts
    assert any(EVIL in run["config"] for run in runs_of(page))
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert "alert(1)</script>" not in html


def test_filters_are_there_where_there_is_a_choice(written: Path, tmp_path: Path) -> None:
    page = Page((written / "index.html").read_text())
    boxes = [value for tag, name, value in page.attributes if tag == "input" and name == "value"]
    assert boxes == ["cifar100", "icons", "3", "5", "lora", "inflora", "fmlora", "frozen", "joint"]
    write_whole(tmp_path, "lora", 0, 60, benchmark="icons", n_tasks=5)
    assert not [tag for tag, _, _ in Page(page_of(tmp_path)).attributes if tag == "input"]


def test_what_was_left_out_and_what_is_missing_stands_there(tmp_path: Path) -> None:
    write_whole(tmp_path, "lora", 0, 60, benchmark="icons", n_tasks=5)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "result.json").write_text("{")
    page = Page(page_of(tmp_path))
    assert "Left out" in page.texts
    assert any("broken" in text and "JSON" in text for text in page.texts)


def test_a_served_page_asks_for_its_version_and_an_empty_one_says_why() -> None:
    page = live(empty_page("no <run> is there"), "7")
    assert "no <run> is there" in Page(page).texts
    assert '<html data-version="7" lang="en">' in page
    assert "connect-src 'self'" in page
