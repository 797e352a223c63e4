"""The page on the loopback address, while runs are finished."""

import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from fmlora_dist.errors import UserError
from fmlora_dist.report.page import empty_page
from fmlora_dist.report.serve import Site


def get(url: str, **headers: str) -> str:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as answer:
        return answer.read().decode()


def test_a_site_serves_its_page_and_what_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "curves.svg").write_text("<svg/>")
    (tmp_path / "index.html").write_text("the file")
    with Site(tmp_path) as site:
        site.show(empty_page("one"))
        first = get(f"{site.url}version")
        assert get(f"{site.url}curves.svg") == "<svg/>"
        assert "one" in get(site.url)
        assert f'data-version="{first}"' in get(f"{site.url}index.html")
        site.show(empty_page("two"))
        assert get(f"{site.url}version") != first
        assert "two" in get(site.url)
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(f"{site.url}../secret")
        with pytest.raises(urllib.error.HTTPError, match="403"):
            get(site.url, Host="elsewhere.example")
        with pytest.raises(UserError, match=f"port {site.port}"):
            Site(tmp_path, site.port)


def test_fmlora_report_serve_follows_the_runs_until_it_is_interrupted(
    write_run: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "runs").mkdir()
    words = [sys.executable, "-m", "fmlora_dist.cli", "report", str(tmp_path), "--serve", "--port", "0"]

    def listen_to_ctrl_c() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # shells' background jobs, the tests among them, may ignore it

    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, preexec_fn=listen_to_ctrl_c) as server:
        try:
            assert server.stdout
            url = next(word for word in server.stdout.readline().split() if word.startswith("http://127.0.0.1:"))

            def wait_for(text: str) -> None:
                end = time.monotonic() + 120
                while text not in get(url):
                    assert time.monotonic() < end, text
                    time.sleep(0.3)

            wait_for("there is no finished run")
            write_run("lora", 0, 71.25)
            wait_for("71.25")
            write_run("fmlora", 0, 82.5)
            wait_for("82.50")
            assert "82.50" in (tmp_path / "report" / "tables.md").read_text()
            server.send_signal(signal.SIGINT)
            assert server.wait(timeout=60) == 0
        finally:
            server.kill()
