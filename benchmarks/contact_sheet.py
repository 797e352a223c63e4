"""What the tasks of a sequence look like: one page of HTML with a few training images of each class of each task."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from html import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.orders import SEEDED
from benchmarks.samples import Samples
from benchmarks.store import Store
from benchmarks.tasks import TaskSamples, TaskSequence

__all__ = ["MOST_PER_CLASS", "SIDE", "contact_sheet"]

SIDE = 96
"""Largest height and width of a thumbnail in pixels."""
MOST_PER_CLASS = 20
GAP = 4
QUALITY = 75

Pixels = NDArray[np.uint8]

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --line: #8884; --quiet: #6b7280; }}
@media (prefers-color-scheme: dark) {{ :root {{ --quiet: #9ca3af; }} }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 80rem; margin: 0 auto; padding: 1rem; }}
h1, h2 {{ line-height: 1.2; text-wrap: balance; overflow-wrap: anywhere; }}
h2 {{ border-top: 1px solid var(--line); padding-top: 1.5rem; margin: 2rem 0 0; }}
p, small {{ color: var(--quiet); }}
p {{ margin: .25rem 0 1rem; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .2rem 1.5rem .2rem 0; text-align: right; border-bottom: 1px solid var(--line); }}
th:first-child, td:first-child {{ text-align: left; }}
.classes {{ display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, {width}px), 1fr)); }}
figure {{ margin: 0; min-width: 0; overflow-wrap: anywhere; }}
img {{ display: block; max-width: 100%; height: auto; border-radius: 4px; }}
small {{ display: block; font-variant-numeric: tabular-nums; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{facts}</p>
<table>
<thead><tr><th>task</th><th>classes</th><th>train</th><th>test</th></tr></thead>
<tbody>
{rows}
</tbody>
</table>
{tasks}
</body>
</html>
"""


def contact_sheet(sequence: TaskSequence, store: Store, *, per_class: int = 3, workers: int = 2) -> str:
    """The page: for each task its number, domain, classes and counts, and images of each class with the class's name.

    It holds all that it shows (images as data: URIs, a class's side by side in one WebP), needs no script and no
    network, and escapes names, which come from the data. Only the images that it shows are read. They are spread
    evenly over the class's training images of the task, and at most `SIDE` pixels high and wide: about 2 KB each.

    Args:
        sequence: The tasks.
        store: The benchmark's shards.
        per_class: Most images of a class in a task, at least 1.
        workers: Threads that read images.

    Raises:
        UserError: If an image cannot be read.
    """
    side = min(sequence.index.image_size or SIDE, SIDE)
    images = sum(len(task.train) for task in sequence), sum(len(task.test) for task in sequence)
    scenario = {"cil": "class-incremental", "dil": "domain-incremental"}[sequence.scenario]
    seed = f" of seed {sequence.order_seed}" if sequence.order_rule in SEEDED else ""
    excluded = f", without {', '.join(sequence.excluded_domains)}" if sequence.excluded_domains else ""
    return _PAGE.format(
        title=escape(f"{sequence.index.name}: {len(sequence)} tasks, {scenario}"),
        facts=escape(
            f"{sequence.n_classes} classes in the order {sequence.order_rule}{seed}; {images[0]} training and"
            f" {images[1]} test images{excluded}"
        ),
        width=per_class * (side + GAP) - GAP,
        rows="\n".join(
            f'<tr><td><a href="#task-{task.number}">{_title(task)}</a></td><td>{len(task.classes)}</td>'
            f"<td>{len(task.train)}</td><td>{len(task.test)}</td></tr>"
            for task in sequence
        ),
        tasks="\n".join(
            f'<section id="task-{task.number}">\n<h2>{_title(task)}</h2>\n<p>{len(task.classes)} classes,'
            f' {len(task.train)} training and {len(task.test)} test images</p>\n<div class="classes">\n'
            + "\n".join(_figures(sequence, task, store, per_class, side, workers))
            + "\n</div>\n</section>"
            for task in sequence
        ),
    )


def _title(task: TaskSamples) -> str:
    return f"Task {task.number}" + (f": <bdi>{escape(task.domain)}</bdi>" if task.domain is not None else "")


def _figures(
    sequence: TaskSequence, task: TaskSamples, store: Store, per_class: int, side: int, workers: int
) -> Iterator[str]:
    """One <figure> for each class of the task."""
    train, test = (
        [rows[sequence.index.label[rows] == number] for number in task.classes] for rows in (task.train, task.test)
    )
    shown = [_spread(rows, per_class) for rows in train]
    rows = np.concatenate(shown)
    labels = sequence.labels(rows)
    samples = Samples(sequence.index, store, rows, labels, image_size=side, test_only=True, workers=workers)
    pixels = samples.images(np.arange(len(rows))).numpy()
    ends = np.cumsum([len(part) for part in shown])
    for number, name in enumerate(task.class_names):
        part = pixels[ends[number] - len(shown[number]) : ends[number]]
        yield (
            f"<figure>{_strip(part, name) if len(part) else ''}<figcaption><bdi>{escape(name)}</bdi>"
            f"<small>{len(train[number])} train, {len(test[number])} test</small></figcaption></figure>"
        )


def _spread(rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most so many of the rows, evenly spaced, so that pooled domains are likely all to be seen."""
    return rows[np.arange(min(most, len(rows))) * len(rows) // max(1, min(most, len(rows)))]


def _strip(images: Pixels, name: str) -> str:
    """Images [n, 3, S, S] side by side, as one <img>."""
    n, _, side, _ = images.shape
    strip = Image.new("RGBA", (n * (side + GAP) - GAP, side))
    for place, image in enumerate(images):
        strip.paste(Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))), (place * (side + GAP), 0))
    stream = io.BytesIO()
    strip.save(stream, "WEBP", quality=QUALITY)
    content = base64.b64encode(stream.getvalue()).decode()
    return (
        f'<img src="data:image/webp;base64,{content}" width="{strip.width}" height="{strip.height}"'
        f' alt="{n} training images of {escape(name)}">'
    )
