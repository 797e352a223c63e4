"""What is published: transforms and backbone of the public codes, counts and commands in the README."""

import re
from pathlib import Path

import pytest

import layouts
from benchmarks import domainnet, imagenet_a, imagenet_r
from benchmarks.transforms import Transform
from fmlora_dist.registry import get_benchmark

CROP_8, CROP_5 = (0.08, 1.0), (0.05, 1.0)


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
            (name, "pilot", Transform(crop_scale=CROP_5, test_resize=256, test_interpolation="bicubic"))
            for name in ("cifar100", "imagenet_r", "imagenet_a", "cub200", "domainnet")
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


@pytest.mark.parametrize("name", ["imagenet_r", "imagenet_a", "cifar100", "cub200", "domainnet"])
def test_the_papers_benchmarks_show_unit_pixels_to_a_backbone_named_by_its_full_tag(name):
    spec = get_benchmark(name)
    assert (spec.image_size, spec.normalisation) == (224, "unit")
    assert spec.backbone_name == "vit_base_patch16_224.augreg2_in21k_ft_in1k"
    assert set(spec.splits) <= {"coda", "random", "folders"}
    assert bool(spec.splits) == name.startswith("imagenet")


# -- the README -------------------------------------------------------------------------------------------------------

README = (Path(__file__).parents[2] / "README.md").read_text()
PUBLISHED = {
    "imagenet_r": imagenet_r.PUBLISHED,
    "imagenet_a": imagenet_a.PUBLISHED,
    "domainnet": domainnet.PUBLISHED,
}


@pytest.mark.parametrize("name", ["imagenet_r", "imagenet_a", "cifar100", "cub200", "domainnet", "fashion_mnist"])
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


def test_counts_of_domainnet_add_up_over_its_domains():
    counts = domainnet.PUBLISHED
    assert sum(counts.train_per_domain.values()) == counts.train
    assert sum(counts.test_per_domain.values()) == counts.test
