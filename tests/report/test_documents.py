"""What is generated in README.md and docs/ is up to date."""

from pathlib import Path

import pytest

from fmlora_dist.report.documents import PAGES, RESULTS, fill_in
from running import REPOSITORY

DEMO = "<!-- table:demo -->\n"


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_what_the_command_writes(name: str) -> None:
    page = (REPOSITORY / name).read_text()
    assert fill_in(page, REPOSITORY) == page, "run: python -m fmlora_dist.report.documents"


def test_a_table_that_was_changed_by_hand_is_found() -> None:
    page = (REPOSITORY / "README.md").read_text()
    start = page.index(DEMO) + len(DEMO)
    assert fill_in(page[:start] + "our method wins\n" + page[start:], REPOSITORY) == page


def test_the_demos_table_has_a_row_for_each_committed_run() -> None:
    table = (REPOSITORY / "README.md").read_text().partition(DEMO)[2].partition("\n\n")[0]
    assert len(table.splitlines()) == 2 + len([*(REPOSITORY / RESULTS / "demo").rglob("result.json")]) == 7


def test_a_result_that_cannot_be_read_is_not_passed_over(tmp_path: Path) -> None:
    broken = tmp_path / RESULTS / "demo" / "one" / "result.json"
    broken.parent.mkdir(parents=True)
    broken.write_text("{}")
    with pytest.raises(ValueError, match="schema"):
        fill_in(f"{DEMO}<!-- /table -->", tmp_path)
