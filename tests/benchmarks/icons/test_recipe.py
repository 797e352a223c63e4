"""The recipe of the embedded benchmark, on drawings made here."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.icons import pretrain as pretraining
from benchmarks.icons.build import encode
from benchmarks.icons.catalogue import EVERYDAY, Drawing, Package, concept_of, house_of, read_package
from benchmarks.icons.coverage import SIDE, first_of_each, rasterise
from benchmarks.icons.pretrain import augment, pretrain
from benchmarks.icons.renditions import RENDITIONS, render
from benchmarks.icons.selection import Rules, split_houses, spread
from benchmarks.icons.stages import STAGES, Data, pretraining_data
from benchmarks.shards import Sample, write_shards
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


def test_pretraining_sees_no_drawing_that_names_a_class_and_no_test_side_family(tmp_path):
    benchmark = tmp_path / "icons"
    benchmark.mkdir()
    image = encode(np.full((48, 48, 3), 255, np.uint8))
    samples = [Sample(key=f"k{label}", image=image, label=label, domain=0, split=0) for label in range(2)]
    write_shards(benchmark, "icons", samples, ["coffee", "train"], ["ink"], 48)
    (benchmark / "recipe.json").write_text(json.dumps({"test_houses": ["tabler"]}))
    names = {
        "fast": ["fine"],
        "fast-horse": ["good", "tabler"],
        "fast-train-off": ["good"],
        "locomotive": ["good"],
        "cup-fast": ["good"],
        "horse": ["good", "fine"],
        "rare": ["good"],
    }
    concepts = {
        name: [drawing(name, family, f"<path d='M{n} {m}h9v8H0z'/>") for m, family in enumerate(families)]
        for n, (name, families) in enumerate(names.items())
    }
    package = Package(version="1", families={}, concepts=concepts)
    words = pretraining_data(package, benchmark, replace(STAGES[1], least_families=1, least_drawings=2))
    assert words.labels == ["fast", "horse"]
    assert sorted(words.train_labels.tolist()) == [[0, -1], [0, 1], [1, -1], [1, -1]]
    assert words.test_labels.tolist() == [[0, 1]] and len(words.test) == 1
    whole = pretraining_data(package, benchmark, replace(STAGES[0], least_families=1, least_drawings=1))
    assert whole.labels == ["fast", "fast-horse", "horse", "locomotive", "rare"]
    assert (len(whole.train), len(whole.test)) == (6, 1)


def test_what_one_recipe_has_left_is_not_taken_up_by_another(tmp_path, monkeypatch):
    for name in ("index.json", "recipe.json"):
        (tmp_path / name).write_text("{}")
    package = Path("iconify-json-1.tgz")
    keys = [pretraining._key(recipe, package, tmp_path) for recipe in STAGES]
    keys.append(pretraining._key(STAGES[1], Path("iconify-json-2.tgz"), tmp_path))
    monkeypatch.setattr(pretraining, "STAGES", (replace(STAGES[0], epochs=1), STAGES[1]))
    keys.append(pretraining._key(STAGES[1], package, tmp_path))  # it starts from what the first has learned
    (tmp_path / "index.json").write_text("[]")
    keys.append(pretraining._key(STAGES[1], package, tmp_path))
    assert len({*keys}) == 5


def test_a_pretraining_goes_on_from_its_last_epoch_as_if_it_had_not_stopped(tmp_path):
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (8, 48, 48), generator=draw).to(torch.uint8)
    labels = torch.tensor([[0, 1], [1, -1], [2, -1], [0, 2]] * 2)
    data = Data(train=images, train_labels=labels, test=images, test_labels=labels, labels=["a", "b", "c"])
    recipe = replace(STAGES[1], epochs=2, batch_size=4, warmup_steps=1, threads=1)
    whole, outcome = pretrain(data, recipe)
    assert 0 <= outcome["accuracy"] <= 100

    class Stop(Exception):
        pass

    def stop(scratch, parts, generator, epoch, seconds):
        kept(scratch, parts, generator, epoch, seconds)
        raise Stop

    kept = pretraining._keep
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretraining, "_keep", stop)
        with pytest.raises(Stop):
            pretrain(data, recipe, tmp_path)
    resumed, _ = pretrain(data, recipe, tmp_path)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_the_labels_of_a_drawing_have_equal_shares():
    shares = pretraining._targets(torch.tensor([[0, 2], [1, -1]]), 3)
    assert shares.tolist() == [[0.5, 0.0, 0.5], [0.0, 1.0, 0.0]]
