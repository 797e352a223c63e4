"""Every registered method on real drawings and the embedded backbone, from the command line to the result."""

from pathlib import Path

import pytest

from fmlora_dist.registry import list_methods
from running import command, result

ONE_DOMAIN = "blueprint,chalk,colour,pixel,sketch"  # left out: 120 drawings remain to train on
SHORT = ["--benchmark", "icons_mini", "--exclude-domains", ONE_DOMAIN, "--tasks", 2, "--epochs", 1, "--threads", 1]
CHEAPER = {
    "ranpac": ["--method.projection", 200],
    "hide_prompt": ["--method.identity_epochs", 2, "--method.align_epochs", 2],
}


@pytest.mark.parametrize("method", list_methods())
def test_a_short_run_on_drawings_learns_something(method: str, tmp_path: Path) -> None:
    done = command(["run", *SHORT, "--method", method, *CHEAPER.get(method, []), "--out", tmp_path / "run"])
    assert (done.code, done.err) == (0, "")
    facts = result(tmp_path / "run")
    assert facts["status"] == "complete" and facts["protocol"]["shared"]["train_images"] == 120
    rows = facts["accuracy_matrix"]
    assert [len(row) for row in rows] == ([2] if list_methods()[method].info.joint else [1, 2])
    chance = 100 / (40 if list_methods()[method].info.joint else 20)
    assert sum(rows[0]) / len(rows[0]) > 3 * chance
    assert facts["protocol"]["shared"]["predictions"] == "independent of other test images"
