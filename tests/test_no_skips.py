"""Where no long test may be skipped, each way of skipping one is a failure."""

import subprocess
import sys
from pathlib import Path

from running import REPOSITORY

TESTS = """
import pytest

@pytest.mark.long
def test_called():
    pytest.skip("no ip here")

@pytest.mark.long
@pytest.mark.skipif(True, reason="no browser here")
def test_marked():
    pass

@pytest.mark.long
def test_not_skipped():
    pass

@pytest.mark.long
@pytest.mark.xfail(strict=True)
def test_known_to_fail():
    assert False

@pytest.mark.skip(reason="not long")
def test_short():
    pass
"""


def run(file: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    words = ["-m", "pytest", "-q", "-rfs", "-p", "no:cacheprovider", "-c", str(file.parent / "pytest.ini"), *options]
    return subprocess.run(
        [sys.executable, *words, str(file)], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )


def test_a_skipped_long_test_fails_with_its_reason_and_others_may_be_skipped(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    long: takes long\n")
    file = tmp_path / "test_some.py"
    file.write_text(TESTS)
    assert run(file).returncode == 0
    strict = run(file, "-p", "tests.no_skips")
    assert strict.returncode == 1 and "1 failed, 1 passed, 1 skipped, 1 xfailed, 1 error in" in strict.stdout, (
        strict.stdout
    )
    assert "no ip here" in strict.stdout and "no browser here" in strict.stdout


def test_a_file_that_is_skipped_whole_fails(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").touch()
    file = tmp_path / "test_some.py"
    file.write_text("import pytest\npytest.importorskip('no_such_package')\n")
    strict = run(file, "-p", "tests.no_skips")
    assert strict.returncode == 2 and "no_such_package" in strict.stdout, strict.stdout
