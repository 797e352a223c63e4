"""What is published: transforms and backbone of the public codes, counts and commands in the README."""

import re
from pathlib import Path

import pytest

import layouts
from benchmarks import domainnet, imagenet_a, imagenet_r
from benchmarks.transforms import Transform
from fmlora_dist.registry import get_benchmark

CROP_8, CROP_5 = (0.08, 1.0), (0.05, 1.0)
PAPERS = ("imagenet_r", "imagenet_a", "cifar100", "cub200", "domainnet")


@pytest.mark.parametrize(
    ("benchmark", "code", "transform"),
    [
        ("cifar100", "inflora", Transform(crop_scale=CROP_8, test_resize=224, test_interpolation="bilinear")),
        ("imagenet_r", "inflora", Transform(crop_scale=CROP_8, test_resize=256, test_interpolation="bilinear")),
        ("domainnet", "inflora", Transform(crop_scale=CROP_8, test_resize=256, test_interpolation="bilinear")),
        ("cub200", "inflora", Transform(crop_scale=CROP_5, test_resize=256, test_interpolation="bicubic")),
        ("imagenet_a", "inflora", Transform(crop_scale=CROP_5, test_resize=256, test_interpolation="bicubic")),
        ("cifar100", "coda", Transform(crop_scale=CROP_8, test_resize=224, test_interpolation="bilinear")),
        ("imagenet_r", "coda", Transform(crop_scale=CROP_8, test_resize=256, test_interpolation="bilinear")),
        ("domainnet", "coda", Transform(crop_scale=CROP_8, test_resize=256, test_interpolation="bilinear")),
        *(
            (name, code, Transform(crop_scale=CROP_5, test_resize=256, test_interpolation="bicubic"))
            for name in (*PAPERS, "folder")
            for code in ("pilot", "sdlora")
        ),
        (
            "cifar100",
            "hide",
            Transform(
                crop_scale=CROP_8,
                interpolation="bicubic",
                brightness=63 / 255,
                test_resize=256,
                test_interpolation="bicubic",
            ),
        ),
        ("imagenet_r", "hide", Transform(crop_scale=CROP_5, test_resize=256, test_interpolation="bicubic")),
        ("cub200", "hide", Transform(crop_scale=CROP_5, test_resize=256, test_interpolation="bicubic")),
        ("cifar100", "libcontinual", Transform(crop_scale=CROP_5, test_resize=224, test_interpolation="bicubic")),
        ("imagenet_r", "libcontinual", Transform(crop_scale=CROP_5, test_resize=256, test_interpolation="bicubic")),
        (
            "cifar100",
            "mammoth",
            Transform(crop_scale=CROP_8, interpolation="bicubic", test_resize=224, test_interpolation="bicubic"),
        ),
        (
            "imagenet_r",
            "mammoth",
            Transform(
                crop_scale=CROP_8,
                interpolation="bicubic",
                test_resize=256,
                test_interpolation="bicubic",
                test_keeps_aspect=False,
            ),
        ),
        (
            "cub200",
            "mammoth",
            Transform(interpolation="bicubic", train_resize=300, test_resize=256, test_interpolation="bicubic"),
        ),
    ],
)
def test_transforms_are_those_of_the_public_codes(benchmark, code, transform):
    assert get_benchmark(benchmark).transforms[code] == transform
    assert transform.flip


@pytest.mark.parametrize("name", PAPERS)
def test_the_papers_benchmarks_show_unit_pixels_to_a_backbone_named_by_its_full_tag(name):
    spec = get_benchmark(name)
    assert (spec.image_size, spec.normalisation) == (224, "unit")
    assert spec.backbone_name == "vit_base_patch16_224.augreg2_in21k_ft_in1k"
    assert set(spec.splits) <= {"coda", "random", "folders"}
    assert bool(spec.splits) == name.startswith("imagenet")


# -- docs/protocol.md -------------------------------------------------------------------------------------------------

PROTOCOL = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
CODES = {
    "InfLoRA": "inflora",
    "CODA-Prompt": "coda",
    "SD-LoRA": "sdlora",
    "PILOT": "pilot",
    "HiDe-Prompt": "hide",
    "LibContinual's SD-LoRA": "libcontinual",
    "mammoth": "mammoth",
}
DATA_SETS = dict(zip(("ImageNet-R", "ImageNet-A", "CIFAR100", "CUB200", "DomainNet"), PAPERS, strict=True))


def in_words(transform: Transform) -> tuple[str, str]:
    """The table's words for training and test."""
    bicubic = ", bicubic" if transform.interpolation == "bicubic" else ""
    if transform.train_resize:
        train = f"both sides to {transform.train_resize}{bicubic}, random crop"
    else:
        least = transform.crop_scale[0]
        train = f"RRC{'' if least == 0.08 else f' from {least}'}{bicubic}{', brightness' * bool(transform.brightness)}"
    size = transform.test_resize or 224
    sides = f"resize {size}" if transform.test_keeps_aspect else f"both sides to {size}"
    return train, f"{sides}, {transform.test_interpolation}{', centre' * (size > 224)}"


def test_the_page_of_the_public_codes_says_of_each_transform_what_it_is():
    table = PROTOCOL.partition("\n## Transforms\n")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")][1:]
    stated = {}
    for who, train, test, _ in rows:
        codes, _, names = who.partition(": ")
        for code in codes.split(", "):
            for name in PAPERS if names == "all" else [DATA_SETS[word] for word in names.split(", ")]:
                stated[name, CODES[code]] = train, test
    specs = {name: get_benchmark(name).transforms for name in PAPERS}
    assert stated == {(name, code): in_words(one) for name, codes in specs.items() for code, one in codes.items()}
    assert all(f"`{code}`" in table for code in CODES.values())


# -- the README -------------------------------------------------------------------------------------------------------

README = (Path(__file__).parents[2] / "README.md").read_text()
PUBLISHED = {
    "imagenet_r": imagenet_r.PUBLISHED,
    "imagenet_a": imagenet_a.PUBLISHED,
    "domainnet": domainnet.PUBLISHED,
}


@pytest.mark.parametrize("name", [*PAPERS, "fashion_mnist"])
def test_the_readme_states_counts_tasks_and_a_valid_command_for_each_benchmark(name, read):
    (row,) = re.findall(rf"^\| `{name}` \| (.*) \|$", README, re.MULTILINE)
    classes, images, tasks, *_ = row.split(" | ")
    spec = get_benchmark(name)
    published = PUBLISHED.get(name) or read(spec, getattr(layouts, name)()).published
    assert int(classes) == published.classes
    if spec.splits:
        assert images == f"{published.images:,} together"
    else:
        assert images == f"{published.train:,} / {published.test:,}"
    assert tasks.split(";")[0] == ", ".join(map(str, spec.task_counts))
    (command,) = re.findall(rf"^fmlora prepare {name} (.*)$", README, re.MULTILINE)
    words = command.split()
    assert words[::2][:2] == ["--source", "--out"]
    kind = words[words.index("--split") + 1].partition(":")[0] if "--split" in words else ""
    assert (kind in spec.splits) == bool(spec.splits)


def test_the_readme_says_how_images_of_ones_own_are_prepared():
    (row,) = re.findall(r"^\| `folder` \| (.*) \|$", README, re.MULTILINE)
    assert row.split(" | ")[2] == ", ".join(map(str, get_benchmark("folder").task_counts))
    assert r"root/train/class/\*.jpg and root/test/class/\*.jpg" in row
    (command,) = re.findall(r"^fmlora prepare folder (.*)$", README, re.MULTILINE)
    assert command.split()[::2] == ["--source", "--out"]


def test_counts_of_domainnet_add_up_over_its_domains():
    counts = domainnet.PUBLISHED
    assert sum(counts.train_per_domain.values()) == counts.train
    assert sum(counts.test_per_domain.values()) == counts.test
