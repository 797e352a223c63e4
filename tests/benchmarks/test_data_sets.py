"""Readers of the published files: each class, split and domain is the published one, and wrong files are named."""

import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import layouts
from benchmarks import cifar100, cub200, domainnet, fashion_mnist, imagenet_a, imagenet_r
from benchmarks.index import TEST, TRAIN
from benchmarks.preparation.sources import open_source
from benchmarks.preparation.splits import Split
from fmlora_dist.errors import UserError
from layouts import WNIDS, Files


@pytest.fixture
def coda(tmp_path: Path) -> Callable[..., Split]:
    """Write two lists, and give the split that names them."""

    def coda(train: str, test: str) -> Split:
        paths = tmp_path / "imagenet-r_train.yaml", tmp_path / "imagenet-r_test.yaml"
        for path, content in zip(paths, (train, test), strict=True):
            path.write_text(content)
        return Split(kind="coda", files=paths)

    return coda


def edited(files: Files, name: str, old: bytes, new: bytes) -> Files:
    assert old in files[name]
    return files | {name: files[name].replace(old, new, 1)}


# -- ImageNet-R and ImageNet-A ----------------------------------------------------------------------------------------


def test_lists_give_each_image_its_split_and_the_class_of_its_folder(read, coda):
    files = layouts.imagenet_r()
    train, test = layouts.coda_lists(files)
    listing = read(imagenet_r, files, coda(train, test))
    assert len(listing.items) == 40
    for item in listing.items:
        assert listing.classes[item.label] == item.file.split("/")[1]
        assert f"- data/{item.file}\n" in (train, test)[item.split]


def test_label_numbers_of_the_lists_are_mapped_to_sorted_wordnet_ids(read, coda):
    order = (WNIDS[3], WNIDS[1], WNIDS[0], WNIDS[2])
    files = layouts.imagenet_r()
    listing = read(imagenet_r, files, coda(*layouts.coda_lists(files, order)))
    assert listing.classes == WNIDS
    assert tuple(listing.classes[number] for number in listing.list_order) == order


def test_lists_that_are_not_coda_prompts_are_stated_as_other_lists(read, coda, monkeypatch):
    files = layouts.imagenet_r()
    split = coda(*layouts.coda_lists(files))
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in split.files]
    rule = f"{digests[0][:16]}-{digests[1][:16]}"
    assert read(imagenet_r, files, split).split_rule == f"list:{rule}"
    monkeypatch.setattr(imagenet_r, "CODA_LISTS", tuple(digests))
    assert read(imagenet_r, files, split).split_rule == f"coda:{rule}"


def test_coda_prompts_lists_are_known_by_the_checksums_of_the_published_files():
    assert [digest[:16] for digest in imagenet_r.CODA_LISTS] == ["6bcaa14ca9359915", "57275ac242d68983"]
    assert [len(bytes.fromhex(digest)) for digest in imagenet_r.CODA_LISTS] == [32, 32]


def test_a_listed_file_that_is_missing_is_named(refused, coda):
    files = layouts.imagenet_r()
    split = coda(*layouts.coda_lists(files))
    del files[f"imagenet-r/{WNIDS[1]}/art_0.jpg"]
    assert f"no file {WNIDS[1]}/art_0.jpg" in refused(imagenet_r, files, split)


def test_a_file_in_both_lists_is_named(refused, coda):
    files = layouts.imagenet_r()
    train, _ = layouts.coda_lists(files)
    assert "a second time" in refused(imagenet_r, files, coda(train, train))


def test_a_folder_that_disagrees_with_its_label_is_named(refused, coda):
    files = layouts.imagenet_r()
    train, test = layouts.coda_lists(files)
    line = next(line for line in test.splitlines() if WNIDS[1] in line)
    message = refused(imagenet_r, files, coda(train, test.replace(line, f"- data/imagenet-r/{WNIDS[2]}/art_0.jpg")))
    assert f"{WNIDS[2]}/art_0.jpg" in message


@pytest.mark.parametrize(
    "content",
    [
        "",
        "data: [",
        "- a\n- b\n",
        "data: [data/imagenet-r/n01443537/art_0.jpg]\ntargets: []\n",
        "data: [data/imagenet-r/n01443537/art_0.jpg]\ntargets: [zero]\n",
        "data: [data/imagenet-r/n01443537/art_0.jpg]\ntargets: [true]\n",
        "data: [data/imagenet-r/n01443537/art_0.jpg]\ntargets: [7]\n",
        "data: [[1]]\ntargets: [0]\n",
        "data: !!python/object/apply:os.mkdir [made-by-yaml]\ntargets: [0]\n",
    ],
)
def test_a_list_of_another_form_is_refused(refused, coda, content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = layouts.imagenet_r()
    assert "imagenet-r_train.yaml" in refused(imagenet_r, files, coda(content, "data: []\ntargets: []\n"))
    assert not (tmp_path / "made-by-yaml").exists()


@pytest.mark.parametrize("module", [imagenet_r, imagenet_a])
def test_random_draws_a_fifth_by_names_and_seed_alone(module, read, tmp_path):
    files = layouts.imagenet_r() if module is imagenet_r else layouts.imagenet_a()
    drawn = [read(module, files, Split(kind="random", seed=seed)) for seed in (0, 0, 1)]
    tests = [{item.key for item in listing.items if item.split == TEST} for listing in drawn]
    assert [len(test) for test in tests] == [8, 8, 8]
    assert tests[0] == tests[1] != tests[2]
    assert [listing.split_rule for listing in drawn] == ["random:0", "random:0", "random:1"]
    archive = module.read(open_source(layouts.as_tar(tmp_path / "set.tar", files)), Split(kind="random", seed=0))
    assert [vars(item) for item in archive.items] == [vars(item) for item in drawn[0].items]


def test_a_random_split_is_the_same_on_every_machine(read):
    listing = read(imagenet_r, layouts.imagenet_r(), Split(kind="random", seed=0))
    names = " ".join(item.file for item in listing.items if item.split == TEST)
    assert hashlib.sha256(names.encode()).hexdigest()[:16] == "16de500360def86d"


@pytest.mark.parametrize("module", [imagenet_r, imagenet_a])
def test_ready_made_folders_are_taken_as_they_are(module, read):
    files = layouts.ready_made(layouts.imagenet_r() if module is imagenet_r else layouts.imagenet_a())
    listing = read(module, {f"imagenet-r/{name}": content for name, content in files.items()}, Split(kind="folders"))
    assert listing.split_rule == "folders"
    assert Counter(item.split for item in listing.items) == {TRAIN: 30, TEST: 10}
    for item in listing.items:
        assert ("train", "test")[item.split] == item.file.split("/")[1]
        assert listing.classes[item.label] == item.file.split("/")[2]


def test_an_image_in_both_ready_made_folders_is_named(refused):
    files = layouts.ready_made(layouts.imagenet_r())
    name = next(name for name in files if name.startswith("train/"))
    both = files | {name.replace("train/", "test/"): b""}
    assert name.removeprefix("train/") in refused(imagenet_r, both, Split(kind="folders"))


def test_a_split_that_does_not_fit_the_folders_says_where_they_lie(refused, tmp_path):
    files = layouts.imagenet_r()
    assert "'imagenet-r/'" in refused(imagenet_r, files, Split(kind="folders"))
    made = layouts.as_folder(tmp_path / "made", layouts.ready_made(files))
    with pytest.raises(UserError, match=r"'test/', 'train/'.*--split folders"):
        imagenet_r.read(open_source(made), Split(kind="random"))
    empty = layouts.as_folder(tmp_path / "empty", {"README.txt": b""})
    with pytest.raises(UserError, match="no place"):
        imagenet_r.read(open_source(empty), Split(kind="random"))


def test_keys_fit_a_tars_header_however_long_the_names_are(read):
    files = layouts.imagenet_a()
    files |= {f"imagenet-a/{WNIDS[0]}/0.1_{'soft-coated Wheaten Terrier ' * 4}_0.{n}.jpg": b"" for n in range(2)}
    keys = [item.key for item in read(imagenet_a, files, Split(kind="random")).items]
    assert len(set(keys)) == 42
    assert max(len(key) for key in keys) <= 90


# -- CIFAR100 ---------------------------------------------------------------------------------------------------------


def test_cifar_has_the_pixels_labels_and_names_that_pickle_itself_reads(read):
    files = layouts.cifar100()
    listing = read(cifar100, files)
    assert listing.classes == ("apple", "aquarium_fish", "baby", "bear")
    for part, name in ((TRAIN, "train"), (TEST, "test")):
        batch = layouts.unpickled(files[f"cifar-100-python/{name}"])
        items = [item for item in listing.items if item.split == part]
        assert [item.label for item in items] == batch[b"fine_labels"]
        for item, row in zip(items, batch[b"data"], strict=True):
            assert item.pixels is not None
            assert (item.pixels == row.reshape(3, 32, 32).transpose(1, 2, 0)).all()
            assert item.pixels[5, 5, 0] == 60 * item.label


@pytest.mark.parametrize(
    ("name", "change", "word"),
    [
        ("train", {b"fine_labels": [4] * 32}, "fine_labels: found 4, expected 0 to 3"),
        ("train", {b"fine_labels": [b"0"] * 32}, "fine_labels"),
        ("test", {b"fine_labels": [0]}, "fine_labels: found another number than 12"),
        ("test", {b"data": b"none"}, "data: found bytes"),
        ("test", {b"data": layouts.cifar_row(0, 0)}, "data: found shape (3072,)"),
        ("meta", {b"fine_label_names": [1]}, "fine_label_names"),
        ("meta", {b"fine_label_names": []}, "fine_label_names"),
    ],
)
def test_a_cifar_file_with_another_content_is_named(refused, name, change, word):
    files = layouts.cifar100()
    value = layouts.unpickled(files[f"cifar-100-python/{name}"]) | change
    message = refused(cifar100, files | {f"cifar-100-python/{name}": layouts.python2_pickle(value)})
    assert message.startswith(f"{name}: {word}")


@pytest.mark.parametrize("name", ["train", "test", "meta"])
def test_a_missing_or_keyless_cifar_file_is_named(refused, name):
    files = layouts.cifar100()
    keyless = files | {f"cifar-100-python/{name}": layouts.python2_pickle({b"labels": []})}
    assert f"{name}: found no '" in refused(cifar100, keyless)


# -- CUB200 -----------------------------------------------------------------------------------------------------------


def test_cub_follows_its_lists(read):
    files = layouts.cub200()
    listing = read(cub200, files)
    assert listing.classes == layouts.BIRDS
    lists = {
        name: dict(line.split() for line in files[f"CUB_200_2011/{name}.txt"].decode().splitlines())
        for name in ("images", "image_class_labels", "train_test_split", "classes")
    }
    assert len(listing.items) == len(lists["images"]) == 24
    for item, (image, name) in zip(listing.items, lists["images"].items(), strict=True):
        assert item.file.endswith(f"images/{name}")
        assert listing.classes[item.label] == lists["classes"][lists["image_class_labels"][image]]
        assert item.split == {"1": TRAIN, "0": TEST}[lists["train_test_split"][image]]


@pytest.mark.parametrize(
    ("name", "old", "new", "words"),
    [
        ("images", b"\n2 ", b"\n1 ", "images.txt, line 2"),
        ("images", b"2 001.Black_footed_Albatross/", b"2 002.Laysan_Albatross/", "in folder '002.Laysan_Albatross'"),
        ("images", b"_0001_20.jpg", b"_0001_99.jpg", "no file images/001.Black_footed_Albatross/"),
        ("image_class_labels", b"3 1\n", b"3 5\n", "image_class_labels.txt: found 5 for image 3"),
        ("image_class_labels", b"3 1\n", b"", "image_class_labels.txt: found nothing for image 3"),
        ("image_class_labels", b"3 1\n", b"3\n", "image_class_labels.txt, line 3"),
        ("train_test_split", b"3 0\n", b"3 2\n", "train_test_split.txt: found 2 for image 3"),
    ],
)
def test_a_cub_list_that_does_not_fit_the_others_is_named(refused, name, old, new, words):
    assert words in refused(cub200, edited(layouts.cub200(), f"CUB_200_2011/{name}.txt", old, new))


# -- DomainNet --------------------------------------------------------------------------------------------------------


def test_domainnet_follows_its_lists(read):
    files = layouts.domainnet()
    listing = read(domainnet, files)
    assert listing.domains == layouts.DOMAINS
    assert listing.classes == ("aircraft_carrier", "airplane", "t-shirt", "The_Eiffel_Tower")
    assert len(listing.items) == 6 * 4 * 4
    for item in listing.items:
        domain, split = listing.domains[item.domain], ("train", "test")[item.split]
        assert f"{item.file} {item.label}\n" in files[f"{domain}_{split}.txt"].decode()
        assert item.file.split("/")[:2] == [domain, listing.classes[item.label]]


def test_domainnet_without_some_domains_numbers_those_that_are_there(read):
    listing = read(domainnet, layouts.domainnet(("sketch", "clipart")))
    assert listing.domains == ("clipart", "sketch")
    assert Counter(item.domain for item in listing.items) == {0: 16, 1: 16}
    assert all(item.file.startswith(listing.domains[item.domain]) for item in listing.items)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b"_000002.jpg 0", b"_000002.jpg zero", "real_train.txt, line 2: found 'real/aircraft_carrier/"),
        (b"_000002.jpg 0", b"_000002.jpg 345", "a class from 0 to 344"),
        (b"_000002.jpg 0", b"_000001.jpg 0", "a second time"),
        (b"_000002.jpg 0", b"_000099.jpg 0", "no file real/aircraft_carrier/real_001_000099.jpg"),
        (b"_000002.jpg 0", b"_000002.jpg 1", "as class 1, expected real/airplane/"),
        (b"real/aircraft_carrier/real_001_000002", b"sketch/aircraft_carrier/sketch_001_000002", "expected real/"),
    ],
)
def test_a_domainnet_list_that_does_not_fit_is_named(refused, old, new, words):
    assert words in refused(domainnet, edited(layouts.domainnet(), "real_train.txt", old, new))


def test_domainnet_lists_that_are_missing_are_named(refused, tmp_path):
    files = layouts.domainnet()
    without = {name: content for name, content in files.items() if name != "real_test.txt"}
    assert "real_test.txt" in refused(domainnet, without)
    images = layouts.as_folder(tmp_path / "images", {name: files[name] for name in files if "/" in name})
    with pytest.raises(UserError, match=r"none of the lists clipart_train\.txt"):
        domainnet.read(open_source(images), Split())


def test_domainnet_classes_without_an_image_are_named(refused):
    files = layouts.domainnet(("real",))
    for name in ("real_train.txt", "real_test.txt"):
        files[name] = b"".join(line for line in files[name].splitlines(keepends=True) if not line.endswith(b" 1\n"))
    assert "no image of class 1" in refused(domainnet, files)


# -- Fashion-MNIST ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False])
def test_fashion_mnist_has_its_pixels_and_labels(read, zipped):
    listing = read(fashion_mnist, layouts.fashion_mnist(zipped=zipped))
    assert Counter(item.split for item in listing.items) == {TRAIN: 60, TEST: 20}
    assert listing.classes[0] == "T-shirt/top"
    assert listing.classes[9] == "Ankle boot"
    for place, item in enumerate(listing.items):
        assert item.pixels is not None
        assert item.pixels.shape == (28, 28)
        assert item.pixels[item.label * 2, 5] == 255
        assert item.pixels[27, 27] == place - 60 * item.split


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train-images-idx3-ubyte", b""),
        ("train-images-idx3-ubyte", b"\0\0\x08\x03"),
        ("train-images-idx3-ubyte", b"\0\0\x08\x01\0\0\0\1\0"),
        ("train-images-idx3-ubyte", b"\0\0\x0d\x03\0\0\0\1\0\0\0\1\0\0\0\1" + bytes(4)),
        ("train-images-idx3-ubyte", b"\0\0\x08\x03\0\0\0\2\0\0\0\1\0\0\0\1\0"),
        ("train-images-idx3-ubyte", b"\0\0\x08\x03\0\0\0\1\0\0\0\1\0\0\0\1\0\0"),
        ("train-images-idx3-ubyte", b"\0\0\x08\x03" + b"\xff" * 12),
        ("train-images-idx3-ubyte", b"\0\0\x08\x03\0\0\0\1\0\0\0\1\0\0\0\1\0"),
        ("train-labels-idx1-ubyte", b"\0\0\x08\x01\0\0\0\1\0"),
        ("train-labels-idx1-ubyte", b"\0\0\x08\x01\0\0\0\x3c" + b"\x0a" * 60),
    ],
)
def test_an_idx_file_of_another_form_is_named(refused, name, content):
    assert name in refused(fashion_mnist, layouts.fashion_mnist(zipped=False) | {name: content})


@pytest.mark.parametrize("content", [b"", b"no gzip", layouts.fashion_mnist()["train-labels-idx1-ubyte.gz"][:-9]])
def test_a_broken_gzip_file_is_named(refused, content):
    name = "train-labels-idx1-ubyte.gz"
    assert name in refused(fashion_mnist, layouts.fashion_mnist() | {name: content})


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 20), value=st.integers(0, 255))
def test_an_idx_file_with_any_byte_of_its_header_changed_is_refused_or_has_its_own_shape(place, value):
    content = bytearray(layouts.fashion_mnist(train=1, zipped=False)["train-images-idx3-ubyte"])
    content[place] = value
    try:
        array = fashion_mnist.read_idx(bytes(content), 3, "file")
    except UserError as error:
        assert str(error).startswith("file: ")
    else:
        assert array.size == len(content) - 16
