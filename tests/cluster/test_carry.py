"""What is carried between a folder and a store, in which order, and what happens when the store fails."""

from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from cluster import carry
from cluster.carry import Carried, Copy, insist
from cluster.lease import Lease
from fmlora_dist.errors import InUseError, UserError
from memory_store import names, put


class Watched(MemoryFileSystem):
    """Remembers what was put, and fails as often as it is told."""

    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self.puts: list[str] = []
        self.failures = 0

    def put_file(self, path: str, rpath: str, *words: Any, **options: Any) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionError("the link is down")
        super().put_file(path, rpath, *words, **options)
        self.puts.append(rpath.rsplit("/", 1)[-1])


def write(folder: Path, *names: str, content: str = "x") -> None:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)


def test_only_what_has_changed_is_put_and_the_result_last(tmp_path: Path, url: str) -> None:
    files = Watched()
    copy = Copy(files, url.removeprefix("memory:/"), tmp_path / "run")
    write(copy.folder, "result.json", "log.txt", "config.yaml", "checkpoint.safetensors", ".lock", ".x.tmp")
    copy.push()
    assert files.puts == ["config.yaml", "checkpoint.safetensors", "log.txt", "result.json"]
    write(copy.folder, "log.txt", content="more")
    copy.push()
    assert files.puts[4:] == ["log.txt"]
    assert names(url) == {"config.yaml", "checkpoint.safetensors", "log.txt", "result.json"}


def test_a_run_is_fetched_without_its_leases_and_what_was_fetched_is_not_put_again(tmp_path: Path, url: str) -> None:
    put(url, config_yaml=b"c", checkpoint_safetensors=b"t" * 9, tensorboard__events=b"e")
    files = Watched()
    files.pipe_file(f"{url}/lease-1", b"{}")
    copy = Copy(files, url.removeprefix("memory:/"), tmp_path / "run")
    copy.fetch()
    assert {path.name: path.read_bytes() for path in copy.folder.iterdir()} == {
        "config.yaml": b"c",
        "checkpoint.safetensors": b"t" * 9,
    }
    copy.push()
    assert files.puts == []


def test_of_a_file_that_grows_only_what_is_new_is_read(tmp_path: Path, url: str) -> None:
    put(url, runs__x__events_jsonl=b"one\n", runs__x__log_txt=b"-")
    copy = Copy(MemoryFileSystem(), url.removeprefix("memory:/"), tmp_path / "copy")
    copy.extend(lambda name: name.endswith("jsonl"))
    put(url, runs__x__events_jsonl=b"ONE\ntwo\n")
    copy.extend(lambda name: name.endswith("jsonl"))
    assert (copy.folder / "runs" / "x" / "events.jsonl").read_text() == "one\ntwo\n"
    assert not (copy.folder / "runs" / "x" / "log.txt").exists()


def carried(tmp_path: Path, url: str) -> tuple[Watched, Lease, Carried]:
    files, root = Watched(), url.removeprefix("memory:/")
    lease = Lease(files, root, beat=600)
    assert lease.take()
    place = Carried(Copy(files, root, tmp_path / "run"), lease, lambda error: UserError(f"cannot: {error}"))
    return files, lease, place


def test_a_run_goes_on_while_its_store_fails_and_stops_when_that_lasts(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carry, "_EVERY", 0.0)
    files, lease, place = carried(tmp_path, url)
    write(place.folder, "log.txt")
    files.failures = 2
    place.keep()
    place.keep()
    assert files.puts == []
    place.keep()
    assert files.puts == ["log.txt"]
    monkeypatch.setattr(carry, "_GIVE_UP", 0.0)
    write(place.folder, "log.txt", content="more")
    files.failures = 1
    with pytest.raises(UserError, match="cannot: the link is down"):
        place.keep()
    lease.release()


def test_who_was_overtaken_puts_nothing_more(tmp_path: Path, url: str) -> None:
    files, lease, place = carried(tmp_path, url)
    write(place.folder, "checkpoint.safetensors")
    files.pipe_file(f"{url}/lease-2", b"{}")
    with pytest.raises(InUseError, match="has taken run over: this one was thought dead"):
        place.finish()
    with pytest.raises(InUseError):
        place.keep()
    assert files.puts == []
    lease.release()


def test_what_is_needed_at_once_is_tried_several_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carry, "_PAUSES", (0.0, 0.0))
    failures = [OSError("busy"), OSError("busy")]

    def work() -> None:
        if failures:
            raise failures.pop()

    insist(work, lambda error: UserError(f"cannot: {error}"))
    failures += [OSError("a"), OSError("b"), OSError("c")]
    with pytest.raises(UserError, match="cannot: a"):
        insist(work, lambda error: UserError(f"cannot: {error}"))
    failures += [OSError("not asked for"), PermissionError("no")]
    with pytest.raises(UserError, match="cannot: no"):
        insist(work, lambda error: UserError(f"cannot: {error}"))
