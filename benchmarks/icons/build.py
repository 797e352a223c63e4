"""Make the embedded benchmark: `python -m benchmarks.icons.build --package DIR_OR_TGZ --out benchmarks/data/icons`.

The package is `@iconify/json`, as `npm pack @iconify/json` delivers it. Needs the extra `build-data` (resvg-py). The
same version of the package gives the same bytes, with the same versions of resvg and Pillow.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from PIL import Image

from benchmarks.icons.catalogue import EVERYDAY, Drawing, Package, read_package
from benchmarks.icons.coverage import SIDE, rasterise
from benchmarks.icons.renditions import RENDITIONS, Picture, render
from benchmarks.icons.selection import Chosen, Rules, choose
from benchmarks.index import SPLITS, Index
from benchmarks.shards import Sample, write_shards

__all__ = ["build", "encode", "main"]

IMAGE_SIZE = SIDE // 2
_MOST_RENDERED = 160  # drawings of a concept that are looked at at all, in the order of their hashes

_LICENCE_URLS = {
    "MIT": "https://spdx.org/licenses/MIT.html",
    "Apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0",
    "ISC": "https://spdx.org/licenses/ISC.html",
    "BSD-3-Clause": "https://spdx.org/licenses/BSD-3-Clause.html",
    "CC0-1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
    "OFL-1.1": "https://openfontlicense.org/",
    "Unlicense": "https://unlicense.org/",
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
    "CC-BY-3.0": "https://creativecommons.org/licenses/by/3.0/",
}


def build(package: Package, out: Path, rules: Rules) -> Index:
    """Choose, render and write the benchmark into `out`: shards, index.json, LICENSES.md and recipe.json."""
    candidates = [drawing for name in EVERYDAY for drawing in package.concepts.get(name, [])[:_MOST_RENDERED]]
    drawings, coverage = rasterise(candidates)
    chosen, test_houses = choose(drawings, coverage, rules)
    classes = sorted({one.drawing.concept for one in chosen})
    index = write_shards(out, "icons", _samples(chosen, classes), classes, list(RENDITIONS), IMAGE_SIZE)
    (out / "LICENSES.md").write_text(licences(package, [one.drawing for one in chosen]), encoding="utf-8")
    recipe = {
        "package": "@iconify/json",
        "package_version": package.version,
        "rules": asdict(rules),
        "classes": len(classes),
        "drawings": len(chosen),
        "families": len({one.drawing.family for one in chosen}),
        "splits": {name: sum(one.split == number for one in chosen) for number, name in enumerate(SPLITS)},
        "renditions": dict(sorted(Counter(one.rendition for one in chosen).items())),
        "candidates": {"concepts": len(EVERYDAY), "drawings": len(drawings)},
        "test_houses": sorted(test_houses),
        "fingerprint": index.fingerprint,
    }
    (out / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")
    return index


def encode(picture: Picture) -> bytes:
    """WebP, lossless unless quality 85 is smaller: grain costs more than it tells, flat colours do not."""
    image = Image.fromarray(picture)
    versions = []
    for options in ({"lossless": True, "quality": 60, "method": 4}, {"quality": 85, "method": 6}):
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", **options)
        versions.append(buffer.getvalue())
    return min(versions, key=len)


def licences(package: Package, drawings: Iterable[Drawing]) -> str:
    """LICENSES.md: every family of which a drawing is used, with its author and licence."""
    used = Counter(drawing.family for drawing in drawings)
    rows = []
    for prefix in sorted(used):
        family = package.families[prefix]
        name, author = (text.replace("|", "\\|") for text in (family.name, family.author))
        by = f"[{author}]({family.author_url})" if family.author_url else author
        licence = f"[{family.licence}]({family.licence_url or _LICENCE_URLS[family.licence]})"
        rows.append(f"| {prefix} | {name} | {by} | {licence} | {used[prefix]} |")
    return (
        "# Licences of the drawings\n\n"
        f"The pictures in these shards were made from icons of {len(used)} families, as collected in the npm package\n"
        f"`@iconify/json` {package.version}. Each keeps its author's licence. A sample's key begins with its family's\n"
        "prefix: `family--icon-name`.\n\n"
        "Changes made to every drawing: rendered at 48×48 pixels and shown in one of six renditions (as black ink,\n"
        "blueprint, random colours, 12×12 pixels, chalk, pencil sketch).\n"
        "The authors endorse neither this use nor the result.\n\n"
        "| Prefix | Family | Author | Licence | Drawings |\n|---|---|---|---|---:|\n" + "\n".join(rows) + "\n"
    )


def _samples(chosen: Sequence[Chosen], classes: Sequence[str]) -> Iterator[Sample]:
    """In the order of hashes, so that whoever streams a shard from end to end gets the classes mixed."""
    renditions = list(RENDITIONS)
    for one in sorted(chosen, key=lambda one: hashlib.sha256(one.drawing.key.encode()).digest()):
        yield Sample(
            key=one.drawing.key,
            image=encode(render(one.rendition, one.coverage / 255, one.drawing.key)),
            label=classes.index(one.drawing.concept),
            domain=renditions.index(one.rendition),
            split=one.split,
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(
        description="Make the embedded benchmark `icons` from the npm package @iconify/json."
    )
    parser.add_argument("--package", type=Path, required=True, help="folder or .tgz of @iconify/json")
    parser.add_argument("--out", type=Path, required=True, help="folder for shards, index, licences and recipe")
    options = parser.parse_args(arguments)
    index = build(read_package(options.package), options.out, Rules())
    size = sum(shard.bytes for shard in index.shards)
    print(f"{len(index)} drawings of {len(index.classes)} concepts in {len(index.shards)} shards, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
