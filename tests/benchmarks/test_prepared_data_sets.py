"""From published files to a finished run, by the real commands: prepare, verify, two tasks of training."""

import gzip
import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import layouts
from benchmarks.index import SPLITS, Index
from layouts import Files
from running import command, result

BACKBONE = ["--backbone.name", "vit_tiny_patch16_224", "--backbone.weights", "random", "--backbone.options"]
BACKBONE += ['{"depth": 1, "embed_dim": 48, "num_heads": 3, "patch_size": 32}']
SMALL = ["--method", "lora", "--epochs", "1", "--batch-size", "8", "--threads", "1", *BACKBONE]

Facts = set[tuple[str, str, str, str]]
"""(split, domain, class, SHA-256 of the file as published or of the pixels) of each image."""


def of_file(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def of_pixels(pixels: np.ndarray) -> str:
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()


# -- what the published files say, read here without the readers -------------------------------------------------------


def imagenet_r_facts(files: Files) -> Facts:
    facts = set()
    for split, text in zip(SPLITS, layouts.coda_lists(files), strict=True):
        names = [line.removeprefix("- data/") for line in text.splitlines() if line.startswith("- data/")]
        facts |= {(split, "all", name.split("/")[1], of_file(files[name])) for name in names}
    return facts


def folder_facts(files: Files) -> Facts:
    images = (name.split("/") for name in files if not name.endswith(".txt"))
    return {(split, "all", wnid, of_file(files[f"{split}/{wnid}/{image}"])) for split, wnid, image in images}


def cifar100_facts(files: Files) -> Facts:
    batches = {name: layouts.unpickled(files[f"cifar-100-python/{name}"]) for name in ("train", "test", "meta")}
    names = [name.decode() for name in batches["meta"][b"fine_label_names"]]
    return {
        (split, "all", names[label], of_pixels(row.reshape(3, 32, 32).transpose(1, 2, 0)))
        for split in SPLITS
        for label, row in zip(batches[split][b"fine_labels"], batches[split][b"data"], strict=True)
    }


def cub200_facts(files: Files) -> Facts:
    images, parts = (
        [line.split()[1] for line in files[f"CUB_200_2011/{name}.txt"].decode().splitlines()]
        for name in ("images", "train_test_split")
    )
    return {
        (SPLITS[1 - int(part)], "all", name.split("/")[0], of_file(files[f"CUB_200_2011/images/{name}"]))
        for name, part in zip(images, parts, strict=True)
    }


def domainnet_facts(files: Files) -> Facts:
    return {
        (split, domain, line.split("/")[1], of_file(files[line.split()[0]]))
        for domain in layouts.DOMAINS
        for split in SPLITS
        for line in files[f"{domain}_{split}.txt"].decode().splitlines()
    }


def fashion_mnist_facts(files: Files) -> Facts:
    names = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
    facts = set()
    for split, part in (("train", "train"), ("test", "t10k")):
        images = gzip.decompress(files[f"{part}-images-idx3-ubyte.gz"])[16:]
        labels = gzip.decompress(files[f"{part}-labels-idx1-ubyte.gz"])[8:]
        for number, label in enumerate(labels):
            pixels = np.frombuffer(images, np.uint8, 784, 784 * number).reshape(28, 28)
            facts.add((split, "all", names[label], of_pixels(pixels)))
    return facts


# -- the road ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A data set, the form in which it comes, and what it holds."""

    name: str
    files: Files
    form: str
    facts: Facts
    split: str = ""
    rule: str = "official"


def cases() -> list[Case]:
    imagenet_r, imagenet_a = layouts.imagenet_r(), layouts.imagenet_a()
    ready_r, ready_a = layouts.ready_made(imagenet_r), layouts.ready_made(imagenet_a)
    cifar, cub, domainnet, fashion, own = (
        layouts.cifar100(),
        layouts.cub200(),
        layouts.domainnet(),
        layouts.fashion_mnist(),
        layouts.folder(),
    )
    return [
        *(Case("imagenet_r", imagenet_r, form, imagenet_r_facts(imagenet_r), "coda", "list:") for form in ("", ".tar")),
        Case("imagenet_r", ready_r, "", folder_facts(ready_r), "folders", "folders"),
        Case("imagenet_a", imagenet_a, ".tar", set(), "random", "random:0"),
        Case("imagenet_a", ready_a, "", folder_facts(ready_a), "folders", "folders"),
        *(Case("cifar100", cifar, form, cifar100_facts(cifar)) for form in ("", ".tar.gz")),
        *(Case("cub200", cub, form, cub200_facts(cub)) for form in ("", ".tgz")),
        *(Case("domainnet", domainnet, form, domainnet_facts(domainnet)) for form in ("", ".zips")),
        Case("fashion_mnist", fashion, "", fashion_mnist_facts(fashion)),
        *(Case("folder", own, form, folder_facts(own), rule="folders") for form in ("", ".tar")),
    ]


def written(case: Case, folder: Path) -> Path:
    if case.form == ".zips":
        return layouts.as_zips(folder / case.name, case.files)
    if case.form:
        return layouts.as_tar(folder / f"{case.name}{case.form}", case.files)
    return layouts.as_folder(folder / case.name, case.files)


def prepare_words(case: Case, folder: Path) -> list[str]:
    words = ["prepare", case.name, "--source", str(written(case, folder)), "--out", str(folder / "shards")]
    if case.split == "coda":
        for name, text in zip(SPLITS, layouts.coda_lists(case.files), strict=True):
            (folder / f"imagenet-r_{name}.yaml").write_text(text)
        return [*words, "--workers", "1", "--split", f"coda:{folder / 'imagenet-r_train.yaml'}"]
    return [*words, "--workers", "1", *(["--split", case.split] if case.split else [])]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Callable[[Case], Path]:
    """The folder of a case's shards, prepared once."""
    made: dict[tuple[str, str, str], Path] = {}

    def prepared(case: Case) -> Path:
        key = case.name, case.form, case.split
        if key not in made:
            folder = tmp_path_factory.mktemp(case.name)
            done = command([*prepare_words(case, folder), "--allow-partial"])
            assert done.code == 0, done.err
            made[key] = folder / "shards"
        return made[key]

    return prepared


def stored(folder: Path, index: Index, *, pixels: bool) -> Facts:
    facts = set()
    for row in range(len(index)):
        shard = (folder / index.shards[index.shard[row]].name).read_bytes()
        content = shard[index.offset[row] : index.offset[row] + index.size[row]]
        digest = of_pixels(np.asarray(Image.open(io.BytesIO(content)))) if pixels else of_file(content)
        names = SPLITS[index.split[row]], index.domains[index.domain[row]], index.classes[index.label[row]]
        facts.add((*names, digest))
    return facts


CASES = cases()


def each(cases: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=[f"{case.name}{case.form}-{case.split}" for case in cases])


each_case = each(CASES)


@each_case
def test_shards_hold_each_published_image_once_in_its_split_domain_and_class(prepared, case):
    index = Index.load(prepared(case))
    found = stored(prepared(case), index, pixels=case.name in ("cifar100", "fashion_mnist"))
    assert len(index) == len(found)
    assert index.split_rule.startswith(case.rule)
    if case.split == "random":
        images = {(name.split("/")[1], of_file(content)) for name, content in case.files.items() if ".jpg" in name}
        assert {fact[2:] for fact in found} == images
        assert sum(split == "test" for split, *_ in found) == 8
    else:
        assert found == case.facts


@each_case
def test_prepared_shards_are_verified_and_learned_in_two_tasks(prepared, case, tmp_path):
    verified = command(["verify", prepared(case), "--workers", "1"])
    assert verified.code == 0, verified.err
    words = [
        "--benchmark",
        case.name,
        "--data-root",
        str(prepared(case)),
        "--tasks",
        "2",
        "--out",
        str(tmp_path / "run"),
    ]
    done = command(["run", *words, *SMALL])
    assert done.code == 0, done.err
    index = Index.load(prepared(case))
    run = result(tmp_path / "run")
    assert len(run["accuracy_matrix"]) == 2
    assert sum(run["test_sizes"]) == (index.split == 1).sum()


def test_domains_are_learned_one_after_the_other(prepared, tmp_path):
    (case,) = (case for case in CASES if case.form == ".zips")
    words = ["--benchmark", "domainnet", "--data-root", str(prepared(case)), "--scenario", "dil"]
    done = command(["run", *words, "--exclude-domains", "quickdraw", "--out", str(tmp_path / "run"), *SMALL])
    assert done.code == 0, done.err
    assert result(tmp_path / "run")["test_sizes"] == [4] * 5


def test_the_order_of_codas_list_is_that_of_its_label_numbers(prepared, tmp_path):
    case = CASES[0]
    words = ["--benchmark", "imagenet_r", "--data-root", str(prepared(case)), "--tasks", "4", "--class-order", "list"]
    done = command(["run", *words, "--out", str(tmp_path / "run"), *SMALL])
    assert done.code == 0, done.err
    index = Index.load(prepared(case))
    order = [layouts.WNIDS[number] for number in (2, 0, 3, 1)]  # as layouts.coda_lists numbers them
    assert [index.classes[number] for number in index.list_order] == order
    tests = [int(((index.split == 1) & (index.label == index.classes.index(wnid))).sum()) for wnid in order]
    assert result(tmp_path / "run")["test_sizes"] == tests


@each([case for case in CASES if case.name != "folder"])
def test_other_counts_than_the_published_ones_are_refused_with_both(case, tmp_path):
    if case.split == "folders":
        expected = "classes: found 4, published 200"
    else:
        expected = {
            "imagenet_r": "train images: found 20, published 24000",
            "imagenet_a": "images: found 40, published 7500",
            "cifar100": "train images: found 32, published 50000",
            "cub200": "train images: found 16, published 5994",
            "domainnet": "train images: found 72, published 409832",
            "fashion_mnist": "train images: found 60, published 60000",
        }[case.name]
    done = command(prepare_words(case, tmp_path))
    assert done.code == 2
    assert expected in done.err
    assert not (tmp_path / "shards" / "index.json").exists()


@pytest.mark.parametrize("name", ["imagenet_r", "imagenet_a"])
def test_without_an_official_split_the_user_must_choose(name, tmp_path):
    layouts.as_folder(tmp_path / "source", getattr(layouts, name)())
    done = command(["prepare", name, "--source", tmp_path / "source", "--out", tmp_path / "shards"])
    assert done.code == 2
    assert "--split random" in done.err
    assert not (tmp_path / "shards").exists()
