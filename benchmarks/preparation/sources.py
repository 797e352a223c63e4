"""The published files of a data set, as its authors give them: a folder, an archive, or a folder of archives.

Nothing is unpacked to disk. A source is a list of names and, for each, the place of its bytes; a place is small and
plain, so worker processes are given places and not archives. Archives are untrusted: whatever could lead out of them
(absolute paths, `..`, links, devices) is refused when they are opened.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from benchmarks.preparation.archives import ARCHIVES, is_archive, list_archive, naming, read_pass
from benchmarks.preparation.places import Place, checked_name, read_place, refuse
from fmlora_dist.errors import UserError

__all__ = ["Source", "open_source"]


class Source:
    """Files by name. Names are relative POSIX paths; hidden files and macOS's `__MACOSX` folders are left out.

    Picklable. Names that differ only in case are two files, since nothing is unpacked.
    """

    def __init__(self, name: str, places: dict[str, Place], kept: dict[str, bytes] | None = None, top: str = ""):
        """Usually by ``open_source``. `kept` holds contents that are in memory already."""
        self.name = name
        """What the user named, without its folder."""
        self.names: tuple[str, ...] = tuple(places)
        """All files: sorted; those of compressed tars come last, in the order of the archive."""
        self._places = places
        self._kept = kept or {}
        self._top = top

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __len__(self) -> int:
        return len(self.names)

    @property
    def sequential(self) -> bool:
        """Whether some files can only be read in one pass, by ``stream``."""
        return any(place.kind == "stream" for place in self._places.values())

    def place(self, name: str) -> Place:
        """Where a file lies. Raises ``UserError`` when there is none of that name."""
        try:
            return self._places[name]
        except KeyError:
            raise UserError(
                f"{self.name}: found no file '{name}', expected one; give the data set as its authors publish it"
            ) from None

    def size(self, name: str) -> int:
        """Length of a file in bytes."""
        return self.place(name).size

    def read(self, name: str) -> bytes:
        """Content of a file. In a compressed tar this passes over the archive, but for small files that are no images.

        Raises:
            UserError: If there is no such file, or it is broken, too large or has changed.
        """
        place = self.place(name)
        if name in self._kept:
            return self._kept[name]
        if place.kind != "stream":
            return read_place(place)
        return next(content for _, content in self.stream([name]))

    def stream(self, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """(name, content) of the given files in the order of ``names`` of the source, in one pass over its archives."""
        wanted = {name: self.place(name) for name in names}
        passes: dict[str, dict[int, str]] = {}
        for name in self.names:
            if (place := wanted.get(name)) is None:
                continue
            if place.kind == "stream":
                passes.setdefault(place.path, {})[place.offset] = name
            else:
                yield name, read_place(place)
        for path, by_offset in passes.items():
            with naming(path):
                for member, _, file in read_pass(path):
                    if name := by_offset.pop(member.offset_data, ""):
                        yield name, file.read()
                    if not by_offset:
                        break
            if by_offset:
                refuse(path, f"no member '{next(iter(by_offset.values()))}' in a second pass", "what it held before")

    def under(self, folder: str) -> Source:
        """The files in the top folder of that name alone, named from there; the source itself if it has none.

        So a reader need not care whether the user named the folder or what it lies in.
        """
        prefix = folder.rstrip("/") + "/"
        places = {name[len(prefix) :]: place for name, place in self._places.items() if name.startswith(prefix)}
        if not places:
            return self
        kept = {name[len(prefix) :]: content for name, content in self._kept.items() if name.startswith(prefix)}
        return Source(self.name, places, kept, self._top + prefix)

    def full(self, name: str) -> str:
        """A file's name in the source of which this is a part: what a listing's items hold."""
        return self._top + name


def open_source(path: Path | str) -> Source:
    """List the files at `path`: a folder, an archive (``ARCHIVES``), or a folder of archives.

    The members of archives that lie in the folder itself appear as if they were unpacked there. Links in a folder are
    followed when they lead to a file inside it.

    Raises:
        UserError: If there is nothing, or something that is refused; names the file or the member.
    """
    path = Path(path).expanduser()
    if not path.is_dir() and not (path.is_file() and is_archive(path.name)):
        found = "a file of another kind" if path.exists() else "nothing"
        raise UserError(
            f"source: found {found} at {path}, expected a folder or one of {', '.join(ARCHIVES)}; correct it"
        )
    kept: dict[str, bytes] = {}
    places: dict[str, Place] = {}
    for name, place in _entries(path, kept):
        if name in places:
            raise UserError(
                f"{place.path}: found '{name}' twice (first in {places[name].path}), expected unique names; remove one,"
                " or give a folder or an archive that holds it once"
            )
        places[name] = place
    direct = sorted(name for name, place in places.items() if place.kind != "stream")
    streamed = (name for name, place in places.items() if place.kind == "stream")
    return Source(path.resolve().name, {name: places[name] for name in (*direct, *streamed)}, kept)


def _entries(path: Path, kept: dict[str, bytes]) -> Iterator[tuple[str, Place]]:
    if not path.is_dir():
        yield from list_archive(path, kept)
        return
    for name, place in _folder(path):
        if "/" not in name and is_archive(name):
            yield from list_archive(path / name, kept)
        else:
            yield name, place


def _folder(root: Path) -> Iterator[tuple[str, Place]]:
    real_root = os.path.realpath(root)
    todo = [(str(root), "")]
    while todo:
        folder, prefix = todo.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            refuse(folder, f"an unreadable folder ({error.strerror})", "one to read", "check its permissions")
        for entry in entries:
            name = checked_name(prefix + entry.name, folder)
            if not name:
                continue
            if entry.is_symlink():
                real = os.path.realpath(entry.path)
                if os.path.commonpath((real, real_root)) != real_root or not os.path.isfile(real):
                    refuse(entry.path, f"a link to {real}", "a link to a file inside the folder", "put the file there")
            elif entry.is_dir():
                todo.append((entry.path, f"{name}/"))
                continue
            elif not entry.is_file():
                refuse(entry.path, "a pipe, socket or device", "files and folders", "remove it")
            yield name, Place(path=entry.path, size=entry.stat().st_size)
