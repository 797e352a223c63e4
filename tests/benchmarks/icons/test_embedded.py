"""The embedded benchmark and backbone are what the recipe promises."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import timm
from PIL import Image
from safetensors import safe_open

import benchmarks.icons
from benchmarks.icons.catalogue import LICENCES, house_of
from benchmarks.icons.renditions import RENDITIONS
from benchmarks.index import TEST, TRAIN, Index

DATA = Path(benchmarks.icons.__file__).parents[1] / "data" / "icons"


@pytest.fixture(scope="module")
def index() -> Index:
    return Index.load(DATA)


@pytest.fixture(scope="module")
def families(index):
    return np.array([key.split("--")[0] for key in index.keys])


def test_it_has_200_concepts_in_six_renditions_within_the_caps(index):
    assert len(index.classes) == 200 and list(index.classes) == sorted(index.classes)
    assert list(index.domains) == list(RENDITIONS) and index.image_size == 48
    assert np.bincount(index.label).max() <= 45


def test_every_concept_has_every_rendition_on_both_sides(index):
    seen = set(zip(index.label.tolist(), index.domain.tolist(), index.split.tolist(), strict=True))
    assert len(seen) == 200 * 6 * 2


def test_about_a_quarter_are_test_drawings(index):
    assert 0.2 <= (index.split == TEST).mean() <= 0.3


def test_no_family_and_no_house_is_on_both_sides(index, families):
    train, test = (set(families[index.split == split]) for split in (TRAIN, TEST))
    assert train.isdisjoint(test)
    assert {house_of(name) for name in train}.isdisjoint({house_of(name) for name in test})


def test_no_test_drawing_is_a_near_copy_of_a_training_one(index):
    """Of the drawings in ink, whose figures can be compared: shared over joint area, moved by up to a pixel."""
    shards = [(DATA / shard.name).read_bytes() for shard in index.shards]
    ink, moves = index.domains.index("ink"), [(down, across) for down in (-1, 0, 1) for across in (-1, 0, 1)]

    def figures(label, split):
        rows = np.flatnonzero((index.label == label) & (index.domain == ink) & (index.split == split))
        starts = [(shards[index.shard[row]], int(index.offset[row]), int(index.size[row])) for row in rows]
        images = [Image.open(io.BytesIO(shard[at : at + size])).convert("L") for shard, at, size in starts]
        return np.stack([1 - np.asarray(image, dtype=np.float32) / 255 for image in images])

    nearest = []
    for label in range(200):
        known = np.concatenate([np.roll(figures(label, TRAIN), move, axis=(1, 2)) for move in moves])
        for figure in figures(label, TEST):
            shared, joint = (of(known, figure).sum((1, 2)) for of in (np.minimum, np.maximum))
            nearest.append((shared / joint).max())
    assert len(nearest) > 300 and max(nearest) < 0.95, "0.95 is where the recipe takes two drawings for one"


def test_every_family_used_is_listed_with_a_permissive_licence(families):
    rows = [line.split(" | ") for line in (DATA / "LICENSES.md").read_text("utf-8").splitlines() if line[:2] == "| "]
    listed = {row[0].removeprefix("| "): row for row in rows[1:]}
    assert listed.keys() == set(families)
    for row in listed.values():
        assert row[3].removeprefix("[").split("]")[0] in LICENCES and row[2]


def test_it_is_small():
    assert sum(path.stat().st_size for path in DATA.iterdir()) <= 25_000_000


def test_images_are_square_rgb_and_renditions_look_different(index):
    first = {}
    for domain in range(6):
        row = int(np.flatnonzero(index.domain == domain)[0])
        content = (DATA / index.shards[index.shard[row]].name).read_bytes()
        encoded = content[int(index.offset[row]) : int(index.offset[row] + index.size[row])]
        image = Image.open(io.BytesIO(encoded))
        assert image.format == "WEBP" and image.size == (48, 48)
        first[index.domains[domain]] = np.asarray(image.convert("RGB"), dtype=float)
    assert first["ink"].mean() > 128 > first["chalk"].mean()
    assert first["blueprint"][..., 2].mean() > first["blueprint"][..., 0].mean() + 30


def test_recipe_describes_the_shards(index):
    recipe = json.loads((DATA / "recipe.json").read_text())
    assert recipe["fingerprint"] == index.fingerprint and recipe["drawings"] == len(index)


def test_backbone_builds_with_timm_and_loads_strictly():
    path = DATA / "backbone.safetensors"
    assert path.stat().st_size <= 12_000_000
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no dict
    create = json.loads(metadata["timm_create_model"])
    model = timm.create_model(create["model_name"], **create["kwargs"])
    model.load_state_dict(weights, strict=True)
    assert all(tensor.element_size() == 2 for tensor in weights.values())
    assert json.loads(metadata["normalisation"]) == {"mean": [0.5] * 3, "std": [0.5] * 3}
    assert "seed" in json.loads(metadata["recipe"])
