"""The recipe of the embedded benchmark, on drawings made here."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.icons.build import encode
from benchmarks.icons.catalogue import EVERYDAY, Drawing, concept_of, house_of, read_package
from benchmarks.icons.coverage import SIDE, first_of_each, rasterise
from benchmarks.icons.pretrain import augment
from benchmarks.icons.renditions import RENDITIONS, render
from benchmarks.icons.selection import Rules, split_houses, spread
from fmlora_dist.errors import UserError


def drawing(name="camera", family="tabler", body="<path d='M0 0h16v8H0z'/>"):
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" width="16" height="16" viewBox="0 0 16 16">{body}</svg>'
    return Drawing(family=family, name=name, concept=name, svg=svg)


@pytest.mark.parametrize(
    ("family", "name", "concept"),
    [
        ("ic", "outline-photo-camera", "camera"),
        ("reicon", "camera2-filled", "camera"),
        ("fluent", "cat-24-regular", "cat"),
        ("solar", "umbrella-bold-duotone", "umbrella"),
        ("tabler", "arrow-left", None),
        ("tabler", "brand-github", "brand-github"),
        ("fa", "github", None),
        ("bx", "bxl-github", None),
        ("tabler", "24", None),
    ],
)
def test_concept_is_the_name_without_style(family, name, concept):
    assert concept_of(family, name) == concept


def test_no_synonym_stands_for_two_concepts():
    names = [name for concept, others in EVERYDAY.items() for name in (concept, *others)]
    assert len(names) == len(set(names))


def test_forks_live_in_one_house():
    assert house_of("feather") == house_of("lucide") and house_of("fa-solid") == house_of("fa7-regular")
    assert house_of("tabler") == "tabler"


def test_only_permissive_black_families_are_read(tmp_path):
    def info(spdx, **more):
        return {"name": "N", "author": {"name": "A"}, "license": {"spdx": spdx}, "palette": False, **more}

    sets = {
        "good": info("MIT"),
        "alike": info("CC-BY-SA-4.0"),
        "brands": info("MIT", category="Logos"),
        "bright": info("MIT", palette=True),
    }
    (tmp_path / "json").mkdir()
    (tmp_path / "package.json").write_text('{"version": "1.2.3"}')
    (tmp_path / "collections.json").write_text(json.dumps(sets))
    for prefix in sets:
        icons = {"cat-fill": {"body": "<g/>"}, "dog": {"body": "<g/>", "hidden": True}}
        (tmp_path / "json" / f"{prefix}.json").write_text(json.dumps({"prefix": prefix, "icons": icons}))
    package = read_package(tmp_path)
    assert package.version == "1.2.3" and list(package.families) == ["good"]
    assert [one.key for one in package.concepts["cat"]] == ["good--cat-fill"] and "dog" not in package.concepts
    with pytest.raises(UserError, match="npm pack"):
        read_package(tmp_path / "json")


@pytest.mark.parametrize("rendition", RENDITIONS)
def test_a_rendition_is_a_function_of_drawing_and_key(rendition):
    coverage = np.zeros((SIDE, SIDE))
    coverage[20:70, 30:60] = 1
    pictures = [render(rendition, coverage, key) for key in ("a", "a", "b")]
    assert pictures[0].shape == (SIDE // 2, SIDE // 2, 3) and pictures[0].dtype == np.uint8
    np.testing.assert_array_equal(pictures[0], pictures[1])
    assert (pictures[0] == pictures[2]).all() == (rendition in ("ink", "pixel"))
    assert pictures[0].std() > 5
    decoded = np.asarray(Image.open(io.BytesIO(encode(pictures[0]))).convert("RGB"), dtype=float)
    assert abs(decoded - pictures[0]).mean() < 10


def test_a_moved_and_scaled_copy_is_found_and_another_drawing_is_not():
    coverage = np.zeros((3, SIDE, SIDE), dtype=np.uint8)
    coverage[0, 10:50, 10:20] = coverage[0, 40:50, 10:50] = 255
    coverage[1] = np.roll(coverage[0], 15, axis=(0, 1))
    coverage[2, 10:50, 40:50] = coverage[2, 10:20, 10:50] = 255
    drawings = [drawing(name, body=f"<path d='M{n} 0h1v1z'/>") for n, name in enumerate("abc")]
    assert first_of_each(drawings, coverage, 0.95) == [0, 2]


def test_an_equal_body_is_a_copy_whatever_its_spaces():
    coverage = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE), dtype=np.uint8)
    drawings = [drawing("a", body="<path d='M0 0h1v1z'/>"), drawing("b", body="<path  d='M0 0h1v1z' />")]
    assert first_of_each(drawings, coverage, 0.95) == [0]


def test_dealing_gives_every_rendition_its_share_and_does_not_depend_on_the_order():
    drawings = [drawing("cat", family=f"family{n}") for n in range(20)]
    dealt = spread(range(20), drawings)
    assert sorted(dealt) == sorted(spread(reversed(range(20)), drawings))
    counts = [sum(name == rendition for _, name in dealt) for rendition in RENDITIONS]
    assert sorted(counts) == [3, 3, 3, 3, 4, 4]


def test_houses_are_split_whole_and_leave_enough_on_both_sides():
    drawings = [drawing("cat", family=f"family{n % 20:02d}") for n in range(200)]
    test = split_houses({"cat": drawings}, Rules(), trials=50)
    inside = sum(one.house in test for one in drawings)
    assert 0 < inside < 80 and test == split_houses({"cat": drawings}, Rules(), trials=50)


def test_augmented_drawings_are_normalised_ink():
    coverage = torch.zeros(4, 48, 48, dtype=torch.uint8)
    coverage[:, 12:36, 12:36] = 255
    batch = augment(coverage, torch.Generator().manual_seed(0))
    assert batch.shape == (4, 3, 48, 48) and batch.min() >= -1 and batch.max() == 1
    assert not torch.equal(batch[0], batch[1]) and torch.equal(batch[:, 0], batch[:, 2])


def test_rasterise_leaves_out_what_is_no_drawing():
    wanted = drawing()
    kept, coverage = rasterise([drawing(body=""), wanted, drawing(body="<path d='M0 0h16v16H0z'/>")], processes=1)
    assert kept == [wanted] and coverage.shape == (1, SIDE, SIDE)
    assert coverage[0, : SIDE // 2].min() == 255 and coverage[0, SIDE // 2 + 1 :].max() == 0
