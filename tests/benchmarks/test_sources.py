"""Published files are read alike from folders and archives, and hostile archives are refused."""

import bz2
import gzip
import io
import lzma
import os
import pickle
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.preparation.sources import Source, open_source
from fmlora_dist.errors import UserError

FILES = {"top/b/2.txt": b"two", "top/a/1.jpg": b"\xff" * 3000, "top/é ü.png": b"", "top/A/1.jpg": b"other case"}


def make(path: Path, files: dict[str, bytes] = FILES) -> Path:
    """The files as a folder or archive, by the path's suffix."""
    if path.name.endswith(".zip"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content, zipfile.ZIP_STORED if "b" in name else zipfile.ZIP_DEFLATED)
    elif ".t" in path.name.lower():
        mode = {".tar": "w", ".gz": "w:gz", ".tgz": "w:gz", ".bz2": "w:bz2", ".xz": "w:xz"}[path.suffix.lower()]
        with tarfile.open(path, mode) as tar:
            for name, content in files.items():
                add(tar, name, content)
    else:
        for name, content in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
    return path


def add(tar: tarfile.TarFile, name: str, content: bytes = b"", **fields: object) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for field, value in fields.items():
        setattr(member, field, value)
    tar.addfile(member, io.BytesIO(content))


FORMS = ["folder", "x.tar", "x.zip", "x.tar.gz", "x.TGZ", "x.tar.bz2", "x.tar.xz"]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_files(form: str, tmp_path: Path) -> None:
    source = pickle.loads(pickle.dumps(open_source(make(tmp_path / form))))
    assert set(source.names) == set(FILES)
    assert {name: source.read(name) for name in source.names} == FILES
    assert dict(source.stream(FILES)) == FILES
    assert {name: source.size(name) for name in source.names} == {name: len(x) for name, x in FILES.items()}
    assert source.name == form
    compressed = form in FORMS[3:]
    assert source.sequential == compressed
    assert list(source.names) == (list(FILES) if compressed else sorted(FILES))


@pytest.mark.parametrize("form", FORMS)
def test_a_part_of_a_source_reads_the_same_files_under_shorter_names(form: str, tmp_path: Path) -> None:
    source = open_source(make(tmp_path / form))
    part = source.under("top")
    assert {part.full(name) for name in part.names} == set(FILES)
    assert {name: part.read(name) for name in part.names} == {name[4:]: content for name, content in FILES.items()}
    assert part.under("no such folder") is part
    assert part.under("a").full("1.jpg") == "top/a/1.jpg"


def test_archives_in_a_folder_appear_as_if_unpacked_there(tmp_path: Path) -> None:
    make(tmp_path, {"lists/train.txt": b"1", "note.txt": b"2", "lists/deep.zip": b"no archive of the data set"})
    make(tmp_path / "one.zip", {"one/a.jpg": b"a"})
    make(tmp_path / "two.tar", {"two/b.jpg": b"b"})
    source = open_source(tmp_path)
    assert source.names == ("lists/deep.zip", "lists/train.txt", "note.txt", "one/a.jpg", "two/b.jpg")
    assert not source.sequential
    make(tmp_path / "a.tgz", {"z": b"z", "three/c.jpg": b"c"})
    mixed = open_source(tmp_path)
    assert mixed.names == (*source.names, "z", "three/c.jpg")
    assert dict(mixed.stream(["z", "two/b.jpg"])) == {"z": b"z", "two/b.jpg": b"b"}
    assert mixed.sequential


def test_a_pass_gives_the_files_in_the_order_of_the_archive(tmp_path: Path) -> None:
    files = {f"{n * 7 % 10}.jpg": bytes([n]) for n in range(10)}
    source = open_source(make(tmp_path / "x.tgz", files))
    assert [name for name, _ in source.stream(sorted(files)[2:])] == [name for name in files if name >= "2"]


def test_hidden_files_and_folders_are_left_out(tmp_path: Path) -> None:
    files = {"a/.DS_Store": b"", "__MACOSX/a/x.jpg": b"", "./a/x.jpg": b"x", ".git/config": b"", "a/._x.jpg": b""}
    for form in ("x.tar", "x.zip", "x.tgz"):
        assert open_source(make(tmp_path / form, files)).names == ("a/x.jpg",)


def test_links_are_followed_only_to_files_inside_the_folder(tmp_path: Path) -> None:
    inside = make(tmp_path / "inside", {"a/1.jpg": b"1"})
    os.symlink("a/1.jpg", inside / "again.jpg")
    assert open_source(inside).read("again.jpg") == b"1"
    (tmp_path / "secret").write_bytes(b"s")
    for target in (tmp_path / "secret", inside / "a", inside / "nothing"):
        os.symlink(target, inside / "link")
        with pytest.raises(UserError, match=r"link: found a link to .*inside the folder"):
            open_source(inside)
        os.unlink(inside / "link")
    os.mkfifo(inside / "pipe")
    with pytest.raises(UserError, match="pipe: found a pipe"):
        open_source(inside)


HOSTILE: dict[str, tuple[str, dict[str, object]]] = {
    "absolute": ("/etc/passwd", {}),
    "upwards": ("a/../../b.jpg", {}),
    "backslash": ("a\\b.jpg", {}),
    "drive": ("C:/b.jpg", {}),
    "symbolic link": ("a.jpg", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}),
    "hard link": ("a.jpg", {"type": tarfile.LNKTYPE, "linkname": "b.jpg"}),
    "device": ("a.jpg", {"type": tarfile.CHRTYPE}),
    "pipe": ("a.jpg", {"type": tarfile.FIFOTYPE}),
    "no UTF-8": ("a\udcff.jpg", {}),
}


@pytest.mark.parametrize("form", ["x.tar", "x.tgz"])
@pytest.mark.parametrize("name", [".a.jpg", "a/._x.jpg", "__MACOSX/a.jpg"])
@pytest.mark.parametrize("kind", ["symbolic link", "hard link", "device", "pipe"])
def test_hidden_members_of_tars_may_be_files_and_folders_only(kind: str, name: str, form: str, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / form, "w:gz" if form == "x.tgz" else "w") as tar:
        add(tar, ".git", type=tarfile.DIRTYPE)
        add(tar, name, **HOSTILE[kind][1])
    with pytest.raises(UserError, match=rf"{form}: found member '{name}' that is a link, device or sparse file"):
        open_source(tmp_path / form)


@pytest.mark.parametrize("form", ["x.tar", "x.tgz"])
@pytest.mark.parametrize("kind", HOSTILE)
def test_members_of_tars_that_lead_elsewhere_are_refused(kind: str, form: str, tmp_path: Path) -> None:
    name, fields = HOSTILE[kind]
    with tarfile.open(tmp_path / form, "w:gz" if form == "x.tgz" else "w", format=tarfile.GNU_FORMAT) as tar:
        add(tar, "fine.jpg", b"fine")
        add(tar, name, **fields)
    with pytest.raises(
        UserError, match=f"{form}: found .*, expected (regular files|relative paths inside the source);"
    ):
        open_source(tmp_path / form)


@pytest.mark.parametrize("name", ["/etc/passwd", "../x.jpg", "a\\b.jpg", "a\0b.jpg", "a/./../../c"])
def test_members_of_zips_that_lead_elsewhere_are_refused(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        entry = zipfile.ZipInfo("placeholder")
        entry.filename = name
        archive.writestr(entry, b"x")
    with pytest.raises(UserError, match=r"x\.zip: found .* in the name .*relative paths"):
        open_source(tmp_path / "x.zip")


@pytest.mark.parametrize("name", ["a.jpg", ".a.jpg", "__MACOSX/a.jpg", "a/"])
@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_links_and_devices_in_zips_are_refused_hidden_or_not(kind: int, name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        entry = zipfile.ZipInfo(name)
        entry.external_attr = (kind | 0o777) << 16
        archive.writestr(entry, "/etc/passwd")
    with pytest.raises(UserError, match=f"found member '{name}' that is a link or device"):
        open_source(tmp_path / "x.zip")


def test_folders_in_zips_are_no_devices(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in ("a/", ".git/"):
            entry = zipfile.ZipInfo(name)
            entry.external_attr = (stat.S_IFDIR | 0o755) << 16
            archive.writestr(entry, "")
        archive.writestr("a/1.jpg", "1")
    assert open_source(tmp_path / "x.zip").names == ("a/1.jpg",)


def test_names_that_come_twice_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        add(tar, "a.jpg", b"1")
        add(tar, "./a.jpg", b"2")
    with pytest.raises(UserError, match=r"found 'a\.jpg' twice"):
        open_source(tmp_path / "x.tar")
    (tmp_path / "folder").mkdir()
    for name in ("1.zip", "2.zip"):
        make(tmp_path / "folder" / name, {"a.jpg": b"a"})
    with pytest.raises(UserError, match=r"2\.zip: found 'a\.jpg' twice \(first in .*1\.zip\)"):
        open_source(tmp_path / "folder")


def test_a_member_never_gives_more_than_it_declares(tmp_path: Path) -> None:
    make(tmp_path / "x.zip", {"a.jpg": b"\0" * 5_000_000})
    content = (tmp_path / "x.zip").read_bytes()
    declared = (5_000_000).to_bytes(4, "little")
    assert content.count(declared) == 2
    (tmp_path / "y.zip").write_bytes(content.replace(declared, (1000).to_bytes(4, "little")))
    with pytest.raises(UserError, match=r"y\.zip: found a member at byte 0 with another checksum"):
        open_source(tmp_path / "y.zip").read("a.jpg")
    (tmp_path / "z.zip").write_bytes(content.replace(declared, (1 << 31).to_bytes(4, "little")))
    with pytest.raises(UserError, match="found a file of 2147483648 bytes, expected at most"):
        open_source(tmp_path / "z.zip").read("a.jpg")


def test_a_compressed_tar_that_unpacks_to_far_more_is_refused(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "x.tgz", "wb") as file:
        member = tarfile.TarInfo("a.jpg")
        member.size = 1 << 40
        file.write(member.tobuf())
    with pytest.raises(UserError, match=r"'a\.jpg' of 1099511627776 bytes"):
        open_source(tmp_path / "x.tgz")


@pytest.mark.parametrize("form", FORMS[1:])
def test_a_truncated_archive_is_refused(form: str, tmp_path: Path) -> None:
    content = make(tmp_path / form).read_bytes()
    (tmp_path / form).write_bytes(content[: len(content) // 3])
    with pytest.raises(UserError, match=f"{form}: found a broken"):
        open_source(tmp_path / form)


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_a_broken_header_is_not_taken_for_the_end(compress: Callable[[bytes], bytes], tmp_path: Path) -> None:
    content = bytearray(make(tmp_path / "plain.tar", {"a.jpg": b"a", "b.jpg": b"b"}).read_bytes())
    content[1024 + 150] ^= 0xFF  # in the checksum of b.jpg's header
    path = tmp_path / "x.tar"
    path.write_bytes(compress(bytes(content)))
    with pytest.raises(UserError, match="broken header after its last readable member"):
        open_source(path)


def test_a_broken_gzip_checksum_is_seen(tmp_path: Path) -> None:
    content = bytearray(make(tmp_path / "x.tgz").read_bytes())
    content[-5] ^= 1
    (tmp_path / "x.tgz").write_bytes(content)
    with pytest.raises(UserError, match="broken archive"):
        open_source(tmp_path / "x.tgz")


def test_a_file_that_changes_after_it_was_listed_is_refused(tmp_path: Path) -> None:
    source = open_source(make(tmp_path / "folder"))
    (tmp_path / "folder" / "top/b/2.txt").write_bytes(b"longer")
    with pytest.raises(UserError, match="another length"):
        source.read("top/b/2.txt")
    (tmp_path / "folder" / "top/b/2.txt").unlink()
    with pytest.raises(UserError, match="unreadable file"):
        source.read("top/b/2.txt")


def test_a_missing_file_or_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"found nothing at .*nowhere, expected a folder or one of"):
        open_source(tmp_path / "nowhere")
    (tmp_path / "x.rar").write_bytes(b"x")
    with pytest.raises(UserError, match="a file of another kind"):
        open_source(tmp_path / "x.rar")
    with pytest.raises(UserError, match=r"x: found no file 'a\.txt'"):
        Source("x", {}).read("a.txt")


@given(
    damage=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=4),
    form=st.sampled_from(FORMS[1:]),
)
@settings(max_examples=150, deadline=None)
def test_a_damaged_archive_gives_a_named_error_or_files(damage, form, tmp_path_factory) -> None:
    path = make(tmp_path_factory.mktemp("damaged") / form)
    content = bytearray(path.read_bytes())
    for place, change in damage:
        content[place % len(content)] ^= change
    path.write_bytes(content)
    try:
        source = open_source(path)
        found = {name: source.read(name) for name in source.names}
    except UserError as error:
        assert form in str(error)
    else:
        assert all(isinstance(content, bytes) for content in found.values())
