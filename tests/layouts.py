"""Tiny data sets in exactly the published layouts: names, lists, byte keys. Each is a dict of contents by file name.

What the readers need of a layout is stated here a second time, from the data sets' own descriptions and not from the
readers, so that a misunderstanding in one of them shows.
"""

import gzip
import io
import pickle
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Files = dict[str, bytes]

WNIDS = ("n01443537", "n01484850", "n02165456", "n09835506")
"""In sorted order; all four are in ImageNet-R."""
DOMAINS = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
CIFAR_NAMES = (b"apple", b"aquarium_fish", b"baby", b"bear")
BIRDS = ("001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross", "004.Groove_billed_Ani")


def photo(label: int, copy: int, form: str = "JPEG") -> bytes:
    """An image of which colour and stripes show the class; sizes differ."""
    draw = np.random.default_rng((label, copy))
    height, width = 40 + copy % 3, 56 - copy % 5
    stripes = (np.arange(width) // (3 + 2 * label) % 2 * 90)[None, :, None]
    pixels = stripes + np.eye(3)[label % 3] * 120 + draw.integers(0, 40, (height, width, 3))
    stream = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(stream, form)
    return stream.getvalue()


# -- the data sets ----------------------------------------------------------------------------------------------------


def imagenet_r(per_class: int = 10) -> Files:
    """imagenet-r.tar: a folder for each WordNet id, files named by the kind of rendition, and a README."""
    files = {"imagenet-r/README.txt": b"n01443537 goldfish\n"}
    for label, wnid in enumerate(WNIDS):
        for copy in range(per_class):
            kind = ("art", "cartoon", "misc", "sketch", "videogame")[copy % 5]
            files[f"imagenet-r/{wnid}/{kind}_{copy // 5}.jpg"] = photo(label, copy)
    return files


def coda_lists(files: Files, order: Sequence[str] = (WNIDS[2], WNIDS[0], WNIDS[3], WNIDS[1])) -> tuple[str, str]:
    """imagenet-r_train.yaml and imagenet-r_test.yaml of such files: their class numbers are not the sorted ids."""
    images = [name for name in files if name.endswith(".jpg")]
    shuffled = [images[number] for number in np.random.default_rng(0).permutation(len(images))]
    last = [name for name in shuffled if name.split("/")[1] in order and "_1." in name]
    first = [name for name in shuffled if name not in last]

    def text(names: Sequence[str]) -> str:
        data = "".join(f"- data/{name}\n" for name in names)
        return f"data:\n{data}targets:\n" + "".join(f"- {order.index(name.split('/')[1])}\n" for name in names)

    return text(first), text(last)


def imagenet_a(per_class: int = 10) -> Files:
    """imagenet-a.tar: as ImageNet-R, with names that hold two probabilities and two class names."""
    files = {"imagenet-a/README.txt": b"ImageNet-A\n"}
    for label, wnid in enumerate(WNIDS):
        for copy in range(per_class):
            files[f"imagenet-a/{wnid}/0.0000{copy:02d}_digital clock _ school bus_0.86{copy}5662.jpg"] = photo(
                label, copy
            )
    return files


def ready_made(files: Files, test: Callable[[int], bool] = lambda number: number % 4 == 3) -> Files:
    """PILOT's form of such a data set: train/ and test/ folders."""
    images = {name: content for name, content in files.items() if not name.endswith(".txt")}
    parts = {name: "test" if test(number) else "train" for number, name in enumerate(images)}
    return {f"{parts[name]}/{name.split('/', 1)[1]}": content for name, content in images.items()}


def folder(train: int = 6, test: int = 2) -> Files:
    """Images of one's own: train/class/ and test/class/, four classes, most of them JPEGs."""
    files = {"notes.txt": b"no image", "train/cat/notes.txt": b"no image"}
    for label, name in enumerate(("ant", "bee", "cat", "dog")):
        for split, copies in (("train", range(train)), ("test", range(train, train + test))):
            for copy in copies:
                suffix, form = ("png", "PNG") if copy == 1 else ("jpg", "JPEG")
                files[f"{split}/{name}/{copy}.{suffix}"] = photo(label, copy, form)
    return files


def cifar100(train: int = 8, test: int = 3, names: Sequence[bytes] = CIFAR_NAMES) -> Files:
    """cifar-100-python: three pickles as Python 2 wrote them, keys and strings being bytes; rows are three planes."""
    files = {"cifar-100-python/file.txt~": b"\n"}
    meta = {b"fine_label_names": list(names), b"coarse_label_names": [b"aquatic_mammals", b"fish"]}
    for part, per_class in (("train", train), ("test", test)):
        labels = np.random.default_rng(len(part)).permutation(np.repeat(np.arange(len(names)), per_class))
        batch = {
            b"filenames": [b"bos_taurus_s_%06d.png" % number for number in range(len(labels))],
            b"batch_label": b"training batch 1 of 1" if part == "train" else b"testing batch 1 of 1",
            b"fine_labels": labels.tolist(),
            b"coarse_labels": [0] * len(labels),
            b"data": np.stack([cifar_row(int(label), number) for number, label in enumerate(labels)]),
        }
        files[f"cifar-100-python/{part}"] = python2_pickle(batch)
    return files | {"cifar-100-python/meta": python2_pickle(meta)}


def cifar_row(label: int, number: int) -> np.ndarray:
    """One image as a row of 3,072 bytes: the class decides how red, the place in the file how blue its first row is."""
    pixels = np.full((3, 32, 32), 20, dtype=np.uint8)
    pixels[0] = 60 * label
    pixels[2, 0] = number
    return pixels.reshape(-1)


def cub200(per_class: int = 6) -> Files:
    """CUB_200_2011: four lists beside the folder of images; the image numbers count from 1."""
    lists: dict[str, list[str]] = {"images": [], "image_class_labels": [], "train_test_split": []}
    files: Files = {"attributes.txt": b"1 has_bill_shape::curved_(up_or_down)\n", "CUB_200_2011/README": b"CUB\n"}
    number = 0
    for label, bird in enumerate(BIRDS):
        for copy in range(per_class):
            number += 1
            name = f"{bird}/{bird.split('.')[1]}_{copy:04d}_{18 + number}.jpg"
            lists["images"].append(f"{number} {name}")
            lists["image_class_labels"].append(f"{number} {label + 1}")
            lists["train_test_split"].append(f"{number} {int(copy % 3 != 2)}")
            files[f"CUB_200_2011/images/{name}"] = photo(label, copy)
    lists["classes"] = [f"{label + 1} {bird}" for label, bird in enumerate(BIRDS)]
    return files | {f"CUB_200_2011/{name}.txt": text(lines) for name, lines in lists.items()}


def domainnet(domains: Sequence[str] = DOMAINS, per_class: int = 4) -> Files:
    """Six folders (published as zips) and twelve lists; the archives hold an image that no list names."""
    classes = ("aircraft_carrier", "airplane", "t-shirt", "The_Eiffel_Tower")
    files: Files = {}
    for place, domain in enumerate(domains):
        lists: dict[str, list[str]] = {"train": [], "test": []}
        form = "png" if domain == "quickdraw" else "jpg"
        for label, name in enumerate(classes):
            for copy in range(per_class + 1):
                file = f"{domain}/{name}/{domain}_{label + 1:03d}_{copy + 1:06d}.{form}"
                files[file] = photo(label, copy + 10 * place, "PNG" if form == "png" else "JPEG")
                if copy < per_class:
                    lists["test" if copy % 4 == 3 else "train"].append(f"{file} {label}")
        files |= {f"{domain}_{part}.txt": text(lines) for part, lines in lists.items()}
    return files


def fashion_mnist(train: int = 6, test: int = 2, zipped: bool = True) -> Files:
    """The four idx files, as Debian installs them."""
    files: Files = {}
    for part, per_class in (("train", train), ("t10k", test)):
        labels = np.tile(np.arange(10, dtype=np.uint8), per_class)
        images = np.zeros((len(labels), 28, 28), dtype=np.uint8)
        images[np.arange(len(labels)), labels * 2] = 255  # a white line, the lower the higher the class
        images[:, 27, 27] = np.arange(len(labels))
        for name, values in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
            content = header + values.tobytes()
            files[f"{name}.gz" if zipped else name] = gzip.compress(content, mtime=0) if zipped else content
    return files


# -- forms in which they come -----------------------------------------------------------------------------------------


def as_folder(path: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def as_tar(path: Path, files: Mapping[str, bytes]) -> Path:
    """Compressed as the suffix says; members in no order, as a disk gives them."""
    mode = {".tar": "w:", ".tgz": "w:gz", ".gz": "w:gz"}[path.suffix]
    names = list(files)
    with tarfile.open(path, mode) as tar:
        for number in np.random.default_rng(1).permutation(len(names)):
            member = tarfile.TarInfo(names[number])
            member.size = len(files[names[number]])
            tar.addfile(member, io.BytesIO(files[names[number]]))
    return path


def as_zips(path: Path, files: Mapping[str, bytes]) -> Path:
    """A folder with a zip for each top folder, and the other files as they are: how DomainNet is published."""
    path.mkdir(parents=True)
    for top in {name.split("/")[0] for name in files if "/" in name}:
        with zipfile.ZipFile(path / f"{top}.zip", "w") as archive:
            for name, content in files.items():
                if name.startswith(f"{top}/"):
                    archive.writestr(name, content)
    return as_folder(path, {name: content for name, content in files.items() if "/" not in name})


def text(lines: Sequence[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


# -- Python 2's pickles -----------------------------------------------------------------------------------------------


def unpickled(content: bytes) -> Any:
    """What pickle itself makes of a file that the tests have made."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy calls the names of its old modules deprecated
        return pickle.loads(content, encoding="bytes")


def python2_pickle(value: object) -> bytes:
    """What Python 2's cPickle.dump(value, file, 2) wrote for dicts, lists, small numbers, strings and uint8 arrays."""
    out = bytearray(b"\x80\x02")
    memo = iter(range(1, 1 << 31))

    def put() -> None:
        number = next(memo)
        out.extend(b"q" + bytes([number]) if number < 256 else b"r" + struct.pack("<I", number))

    def write(value: object) -> None:
        if isinstance(value, dict):
            out.extend(b"}")
            put()
            out.extend(b"(")
            for key, entry in value.items():
                write(key)
                write(entry)
            out.extend(b"u")
        elif isinstance(value, list):
            out.extend(b"]")
            put()
            for start in range(0, len(value), 1000):  # cPickle appends in batches
                out.extend(b"(")
                for entry in value[start : start + 1000]:
                    write(entry)
                out.extend(b"e")
        elif isinstance(value, bytes):
            out.extend(b"U" + bytes([len(value)]) if len(value) < 256 else b"T" + struct.pack("<i", len(value)))
            out.extend(value)
            put()
        elif isinstance(value, int):
            code, layout = (b"K", "<B") if value < 256 else (b"M", "<H") if value < 65536 else (b"J", "<i")
            out.extend(code + struct.pack(layout, value))
        else:
            assert isinstance(value, np.ndarray)
            write_array(value)

    def write_array(array: np.ndarray) -> None:
        for name in (b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy\nndarray\n"):
            out.extend(name)
            put()
        out.extend(b"K\x00\x85")
        put()
        write(b"b")
        for made in (b"\x87", b"R"):
            out.extend(made)
            put()
        out.extend(b"(K\x01")
        for length in array.shape:
            write(length)
        out.append(0x84 + array.ndim)  # a tuple of one, two or three
        put()
        out.extend(b"cnumpy\ndtype\n")
        put()
        write(b"u1")
        for made in (b"K\x00K\x01\x87", b"R"):
            out.extend(made)
            put()
        out.extend(b"(K\x03")
        write(b"|")
        out.extend(b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t")
        put()
        out.extend(b"b\x89")
        write(array.tobytes())
        out.extend(b"t")
        put()
        out.extend(b"b")

    write(value)
    return bytes(out + b".")
