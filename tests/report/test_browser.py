"""The page in a real browser: Debian's Chromium, driven by Playwright, with the file opened from disk."""

import importlib.util
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fmlora_dist.report import make_report, read_runs, write_report
from fmlora_dist.report.page import empty_page
from fmlora_dist.report.serve import Site
from result_files import write_whole

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.long

EVIL = "<img src=x onerror=alert(1)></script><b id=evil>"
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
QUIET += ["--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    missing = "" if chromium else "needs Chromium (Debian's package chromium)"
    missing = missing if importlib.util.find_spec("playwright") else "needs playwright (pip install playwright)"
    if missing:
        pytest.skip(missing)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=QUIET)
        yield started
        started.close()


@pytest.fixture(scope="module")
def report(rich_grid: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    write_report(make_report(read_runs([rich_grid])), folder)
    return folder / "index.html"


@pytest.fixture
def visit(browser: "Browser") -> Iterator[Callable[..., "Page"]]:
    """``visit(file or URL, **options of a browser's context)`` -> the page, which may complain of nothing."""
    wrong: list[str] = []
    contexts = []

    def asked(url: str) -> None:
        if not url.startswith(("file:", "data:", "http://127.0.0.1:")):
            wrong.append(f"request to {url}")

    def open_page(where: Path | str, **options: Any) -> "Page":
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: (wrong.append("a script ran"), dialog.dismiss()))
        page.on("request", lambda request: asked(request.url))
        page.goto(where.as_uri() if isinstance(where, Path) else where)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def rows(page: "Page", table: str = "icons") -> list[list[str]]:
    """What is to be seen of a table, row by row, without the marks of footnotes."""
    section = page.locator("section.table").filter(has=page.get_by_role("heading", name=table, exact=True))
    shown = section.locator("tbody tr:visible")
    texts = [[cell.inner_text() for cell in row.locator("th:visible, td:visible").all()] for row in shown.all()]
    return [[re.sub(r"\s*\[\d+\]$", "", row[0]), *row[1:]] for row in texts]


def head(page: "Page", table: str, column: int) -> Any:
    section = page.locator("section.table").filter(has=page.get_by_role("heading", name=table, exact=True))
    return section.locator("thead tr:last-child th").nth(column)


def test_a_click_on_a_heading_sorts_and_another_turns_it_round(report: Path, visit: Callable[..., "Page"]) -> None:
    page = visit(report)
    as_written = rows(page)
    head(page, "icons", 1).locator("button").click()
    page.wait_for_timeout(50)
    values = [float(row[1].split()[0]) for row in rows(page)]
    assert values == sorted(values, reverse=True)
    assert sorted(rows(page)) == sorted(as_written)
    head(page, "icons", 1).locator("button").click()
    page.wait_for_timeout(50)
    assert [float(row[1].split()[0]) for row in rows(page)] == sorted(values)
    assert head(page, "icons", 1).get_attribute("aria-sort") == "ascending"


def test_sorting_keeps_cells_without_a_figure_last(report: Path, visit: Callable[..., "Page"]) -> None:
    page = visit(report)
    for _ in range(2):
        head(page, "icons", 2).locator("button").click()
        page.wait_for_timeout(50)
        assert rows(page)[-1][0].startswith("joint")
        assert rows(page)[-1][2] == "n/a"


def test_filters_hide_rows_columns_tables_and_figures(report: Path, visit: Callable[..., "Page"]) -> None:
    page = visit(report)
    assert page.locator("figure:visible").count() > 10
    page.get_by_role("checkbox", name="lora", exact=True).check()
    page.get_by_role("checkbox", name="frozen", exact=True).check()
    assert [row[0] for row in rows(page)] == ["lora", "frozen (lower bound)"]
    page.get_by_role("checkbox", name="5", exact=True).check()
    assert {len(row) for row in rows(page)} == {3}
    assert rows(page, "Table 2: CIFAR100 and CUB200") == []
    page.get_by_role("checkbox", name="icons", exact=True).check()
    assert not page.get_by_role("heading", name=re.compile("cifar100")).filter(visible=True).count()
    assert page.get_by_role("heading", name="icons: Accuracy matrix, N = 5").is_visible()
    assert not page.get_by_role("heading", name="icons: Accuracy matrix, N = 3").is_visible()
    address = page.url
    page.get_by_role("button", name="show all").click()
    page.wait_for_timeout(50)
    assert len(rows(page)) > 4
    assert [row[0] for row in rows(visit(address))] == ["lora", "frozen (lower bound)"]
    page.get_by_role("checkbox", name="cifar100", exact=True).check()
    page.get_by_role("checkbox", name="5", exact=True).check()
    assert page.get_by_text("Nothing is left to show").is_visible()


def test_hovering_shows_the_runs_behind_a_cell_and_a_click_opens_one(
    report: Path, visit: Callable[..., "Page"]
) -> None:
    page = visit(report)
    cell = page.locator("button[data-measure=acc]").first
    cell.hover()
    card = page.locator("#card")
    assert card.is_visible()
    members = card.locator("button").all_inner_texts()
    assert len(members) == 2
    assert all(re.fullmatch(r"seed \d\s+\d+\.\d\d", text) for text in members)
    card.locator("button").nth(1).click()
    dialog = page.get_by_role("dialog")
    assert dialog.is_visible()
    assert not card.is_visible()
    pressed = dialog.locator("[aria-pressed=true]")
    assert pressed.inner_text() == members[1].replace("\n", ": ").replace("\t", ": ")
    assert "seed: 1" in dialog.locator("pre").inner_text()
    assert dialog.locator(".matrix tbody td").count() == 3 * 4 / 2
    assert dialog.locator(".curve circle").count() == 3
    dialog.locator("#run-choice button").first.click()
    assert "seed: 0" in dialog.locator("pre").inner_text()
    dialog.get_by_role("button", name="close").click()
    assert not dialog.is_visible()


def test_everything_is_done_with_the_keyboard_alone(report: Path, visit: Callable[..., "Page"]) -> None:
    page = visit(report)

    def tab_to(selector: str) -> None:
        for _ in range(200):
            page.keyboard.press("Tab")
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return
        raise AssertionError(f"no Tab leads to {selector}")

    tab_to("input[value=lora]")
    page.keyboard.press("Space")
    assert [row[0] for row in rows(page)] == ["lora"]
    tab_to("thead th:nth-child(2) button")
    page.keyboard.press("Enter")
    page.wait_for_timeout(50)
    assert page.locator("[aria-sort=descending]").count() == 1
    tab_to("button[data-runs]")
    assert page.locator("#card").is_visible()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    assert dialog.is_visible()
    tab_to("#run-choice button:nth-child(2)")
    page.keyboard.press("Enter")
    assert "seed: 1" in dialog.locator("pre").inner_text()
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert page.evaluate("document.activeElement.matches('button[data-runs]')")
    tab_to("summary")
    page.keyboard.press("Enter")
    assert page.locator("details[open]").count() == 1


@pytest.mark.parametrize("width", [320, 390, 768])
def test_the_page_never_scrolls_sideways(report: Path, visit: Callable[..., "Page"], width: int) -> None:
    page = visit(report, viewport={"width": width, "height": 800}, has_touch=True)
    for summary in page.locator("summary").all():
        summary.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator("button[data-runs]").first.tap()
    dialog = page.get_by_role("dialog")
    assert dialog.is_visible()
    box = dialog.bounding_box()
    assert box
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width
    assert dialog.evaluate("dialog => dialog.scrollWidth <= dialog.clientWidth")


@pytest.mark.parametrize("preferred", ["light", "dark"])
def test_light_and_dark_follow_the_system_until_they_are_chosen(
    report: Path, visit: Callable[..., "Page"], preferred: str
) -> None:
    page = visit(report, color_scheme=preferred)

    def lightness() -> tuple[float, float, float]:
        """Of page, its text, and a figure's text: from 0 to 255."""
        colour = "(s, p) => getComputedStyle(document.querySelector(s))[p].match(/\\d+/g).slice(0, 3)"
        wanted = (("html", "backgroundColor"), ("h1", "color"), ("figure svg text", "fill"))
        values = [page.evaluate(f"([s, p]) => ({colour})(s, p)", list(each)) for each in wanted]
        ground, text, figure = (sum(map(float, value)) / 3 for value in values)
        return ground, text, figure

    for dark in (preferred == "dark", preferred != "dark"):
        ground, text, figure = lightness()
        assert (ground < 60 and text > 180) if dark else (ground > 240 and text < 80)
        assert figure == text
        page.locator("#theme").click()


def test_what_a_run_says_is_shown_as_text(
    write_run: Callable[..., Path], tmp_path: Path, visit: Callable[..., "Page"]
) -> None:
    matrix = [[50.0], [40.0, 50.0]]
    for seed in range(2):
        write_run(EVIL, seed, 50.0, benchmark="<i>", n_tasks=2, config={"out": EVIL}, accuracy_matrix=matrix)
    write_report(make_report(read_runs([tmp_path])), tmp_path / "report")
    page = visit(tmp_path / "report" / "index.html")
    page.locator("button[data-runs]").first.hover()
    page.locator("button[data-runs]").first.click()
    assert EVIL in page.locator("dialog pre").inner_text()
    assert EVIL in page.locator("dialog h2").inner_text()
    assert page.locator("#evil, img").count() == 0


def test_a_served_page_shows_what_is_new_but_not_while_a_run_is_read(
    tmp_path: Path, visit: Callable[..., "Page"]
) -> None:
    def show(level: float) -> None:
        write_whole(tmp_path / "runs", "lora", int(level), level, benchmark="icons", n_tasks=3)
        write_report(make_report(read_runs([tmp_path / "runs"])), tmp_path)
        site.show((tmp_path / "index.html").read_text())

    with Site(tmp_path) as site:
        site.show(empty_page("there is no finished run"))
        page = visit(site.url)
        assert page.get_by_text("there is no finished run").is_visible()
        show(50)
        page.get_by_text("1 finished run ").wait_for(timeout=30000)
        head(page, "icons", 1).locator("button").click()
        page.locator("button[data-runs]").first.click()
        show(60)
        page.wait_for_timeout(5000)
        assert page.get_by_role("dialog").is_visible()
        page.keyboard.press("Escape")
        page.get_by_text("2 finished runs").wait_for(timeout=30000)
        assert head(page, "icons", 1).get_attribute("aria-sort") == "descending"
        page.goto("about:blank")  # no page asks a server that is gone
