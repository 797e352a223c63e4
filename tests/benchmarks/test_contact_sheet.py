"""`fmlora show`: a page that shows each task, holds all that it needs, and takes no name for HTML."""

import base64
import io
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.samples import Samples
from benchmarks.shards import Sample, write_shards
from running import Done, command_here

HOSTILE = ["<script>alert(1)</script>", '"><img src=http://evil.example/x onerror=go()>', "&lt;b&gt; & </figure>", "猫"]
DOMAINS = ["<b>wood</b>", "clay & iron"]
TAGS = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "table", "thead", "tbody", "tr", "th", "td"}
TAGS |= {"a", "bdi", "section", "div", "figure", "figcaption", "small", "img"}


class Page(HTMLParser):
    """What a browser would find: tags, attributes, and for each task its text and images."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.heads: list[str] = []
        self.facts: list[str] = []
        self.rows: list[list[str]] = []
        self.classes: list[list[tuple[str, str]]] = []
        """For each task (name, counts) of each class."""
        self.images: list[list[Image.Image]] = []
        self.alts: list[str] = []
        self._inside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in ("meta", "img"):
            self._inside.append(tag)
        values = {name: value or "" for name, value in attrs}
        self.links += [values[name] for name in ("href", "src", "action", "data", "srcset") if name in values]
        assert not [name for name in values if name.startswith("on")]
        if tag == "section":
            self.classes.append([])
            self.images.append([])
        elif tag == "figure":
            self.classes[-1].append(("", ""))
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append("")
        elif tag == "h2":
            self.heads.append("")
        elif tag == "img":
            kind, _, content = values["src"].partition(",")
            assert kind == "data:image/webp;base64"
            image = Image.open(io.BytesIO(base64.b64decode(content, validate=True)))
            assert image.format == "WEBP" and image.size == (int(values["width"]), int(values["height"]))
            self.images[-1].append(image)
            self.alts.append(values["alt"])

    def handle_endtag(self, tag: str) -> None:
        assert self._inside.pop() == tag

    def handle_data(self, data: str) -> None:
        inside = self._inside
        if "figcaption" in inside:
            name, counts = self.classes[-1][-1]
            self.classes[-1][-1] = (name, counts + data) if "small" in inside else (name + data, counts)
        elif "h2" in inside:
            self.heads[-1] += data
        elif inside[-1:] == ["p"]:
            self.facts.append(data)
        elif "th" in inside or "td" in inside:
            self.rows[-1][-1] += data


def show(folder: Path, out: Path, *words: str) -> Done:
    return command_here(["show", "icons", "--data-root", folder, "--out", out, *words])


def page(folder: Path, out: Path, *words: str) -> Page:
    done = show(folder, out, *words)
    assert done.code == 0, done.err
    assert done.out.startswith(f"{out}: ")
    return Page(out.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes four classes with hostile names in two domains: 5 training images and 2 test images of each."""

    def write(shape: tuple[int, int], suffix: str) -> Path:
        folder: Path = tmp_path_factory.mktemp("named")
        samples = []
        for n in range(4 * 2 * 7):
            label, domain, copy = n // 14, n // 7 % 2, n % 7
            stream = io.BytesIO()
            pixels = np.full((*shape, 3), colour(label, domain), dtype=np.uint8)
            Image.fromarray(pixels).save(stream, {"png": "PNG", "jpg": "JPEG"}[suffix])
            samples.append(
                Sample(
                    key=f"k{label}{domain}{copy}",
                    image=stream.getvalue(),
                    label=label,
                    domain=domain,
                    split=int(copy >= 5),
                    suffix=suffix,
                )
            )
        write_shards(folder, "icons", samples, HOSTILE, DOMAINS, shape[0] if shape[0] == shape[1] else 0)
        return folder

    return write


def colour(label: int, domain: int) -> tuple[int, int, int]:
    return 60 * label, 200 * domain, 100


@pytest.fixture(scope="module")
def folder(make: Callable[..., Path]) -> Path:
    return make((24, 24), "png")


def test_names_are_shown_as_they_are_and_never_as_html(folder: Path, tmp_path: Path) -> None:
    for words in (["--tasks", "2"], ["--scenario", "dil"]):
        found = page(folder, tmp_path / "page.html", *words)
        assert found.tags <= TAGS
        assert {name for task in found.classes for name, _ in task} == set(HOSTILE)
        assert {alt.removeprefix("3 training images of ") for alt in found.alts} == set(HOSTILE)
    assert found.heads == [f"Task {number}: {name}" for number, name in enumerate(DOMAINS, start=1)]
    assert (
        page(folder, tmp_path / "page.html", "--exclude-domains", DOMAINS[0], "--tasks", "2")
        .facts[0]
        .endswith(f", without {DOMAINS[0]}")
    )


def test_the_page_holds_all_that_it_shows(folder: Path, tmp_path: Path) -> None:
    found = page(folder, tmp_path / "page.html", "--tasks", "2")
    assert found.links and all(re.fullmatch(r"#task-\d|data:image/webp;base64,\S+", link) for link in found.links)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in text and "url(" not in text and "@import" not in text
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text


def test_each_class_stands_in_its_task_with_its_counts(folder: Path, tmp_path: Path) -> None:
    found = page(folder, tmp_path / "page.html", "--class-order", "sorted", "--tasks", "2")
    assert found.heads == ["Task 1", "Task 2"]
    assert found.rows == [["task", "classes", "train", "test"], ["Task 1", "2", "20", "8"], ["Task 2", "2", "20", "8"]]
    assert found.classes == [[(name, "10 train, 4 test") for name in part] for part in (HOSTILE[:2], HOSTILE[2:])]
    assert (
        found.facts
        == ["4 classes in the order sorted; 40 training and 16 test images"]
        + ["2 classes, 20 training and 8 test images"] * 2
    )


def test_orders_cuts_and_domains_are_those_of_a_run(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    uneven = page(folder, out, "--tasks", "2", "--first-task", "3", "--order-seed", "0")
    assert [[name for name, _ in task] for task in uneven.classes] == [
        [HOSTILE[2], HOSTILE[3], HOSTILE[1]],  # RandomState(0).permutation(4) is 2, 3, 1, 0
        [HOSTILE[0]],
    ]
    assert uneven.facts[0].startswith("4 classes in the order numpy of seed 0; ")
    domains = page(folder, out, "--scenario", "dil", "--domain-order", ",".join(reversed(DOMAINS)))
    assert domains.heads == [f"Task 1: {DOMAINS[1]}", f"Task 2: {DOMAINS[0]}"]
    assert all(counts == "5 train, 2 test" for task in domains.classes for _, counts in task)


def test_images_are_those_of_the_class_and_the_domain(folder: Path, tmp_path: Path) -> None:
    words = ["--scenario", "dil", "--per-class", "2"]
    found = page(folder, tmp_path / "page.html", *words)
    for domain, images in enumerate(found.images):
        assert len(images) == 4
        for label, image in enumerate(images):
            assert image.size == (2 * 24 + 4, 24)
            middle = np.asarray(image.convert("RGB"))[4:20, 4:20].mean((0, 1))
            assert np.abs(middle - colour(label, domain)).max() < 12, "WebP loses a little"


def test_pooled_domains_are_both_seen(folder: Path, tmp_path: Path) -> None:
    found = page(folder, tmp_path / "page.html", "--class-order", "sorted", "--tasks", "1", "--per-class", "2")
    for image in found.images[0]:
        first, second = (np.asarray(image.convert("RGB"))[4:20, left : left + 16, 1].mean() for left in (4, 32))
        assert first < 20 and second > 180


def test_only_the_images_that_are_shown_are_read(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    monkeypatch.setattr(Samples, "opened", staticmethod(read.extend))
    page(folder, tmp_path / "page.html", "--tasks", "2", "--per-class", "2")
    assert len(read) == len(set(read)) == 4 * 2
    assert all(int(key[-1]) < 5 for key in read), "training images only"


def test_no_more_images_than_there_are(folder: Path, tmp_path: Path) -> None:
    found = page(folder, tmp_path / "page.html", "--scenario", "dil", "--per-class", "20")
    assert {image.size for images in found.images for image in images} == {(5 * 24 + 4 * 4, 24)}


def test_large_images_become_thumbnails(make: Callable[..., Path], tmp_path: Path) -> None:
    found = page(make((300, 500), "jpg"), tmp_path / "page.html", "--tasks", "2")
    assert {image.size for images in found.images for image in images} == {(3 * 96 + 2 * 4, 96)}
    assert (tmp_path / "page.html").stat().st_size < 40_000


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--tasks", "3"], ["tasks: found 3, expected", "1, 2, 4"]),
        ([], ["tasks: found 10 (the default), expected a number that divides the 4 classes"]),
        (["--first-task", "2"], ["tasks: found 10 (the default), expected one more than"]),
        (["--class-order", "sortd"], ["class_order: found 'sortd'"]),
        (["--tasks", "x"], ["tasks: ", "found 'x'"]),
        (["--per-class", "21"], ["per-class: found 21, expected at most 20"]),
        (["--per-class", "0"], ["--per-class", "at least 1"]),
        (["--per-klass", "1"], ["--per-klass"]),
    ],
)
def test_a_mistake_is_one_line(words: list[str], parts: list[str], folder: Path, tmp_path: Path) -> None:
    done = show(folder, tmp_path / "page.html", *words)
    assert done.code == 2 and done.err.count("\n") == 1, done.err
    assert all(part in done.err for part in parts), done.err
    assert not list(tmp_path.iterdir())


def test_a_page_that_cannot_be_written_is_named(folder: Path, tmp_path: Path) -> None:
    done = show(folder, tmp_path / "nowhere" / "page.html", "--tasks", "2")
    assert done.code == 2 and "out: cannot write" in done.err and "nowhere" in done.err
