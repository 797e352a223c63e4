"""Found counts against published ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from benchmarks.index import SPLITS, TEST, TRAIN
from benchmarks.listing import Listing

__all__ = ["differences"]


def differences(listing: Listing) -> list[str]:
    """Each count of the listing that differs from the published one, with both; empty where nothing is published."""
    published = listing.published
    if published is None:
        return []
    splits = Counter(item.split for item in listing.items)
    per_class = Counter((item.split, item.label) for item in listing.items)
    per_domain = Counter((item.split, item.domain) for item in listing.items)

    def each() -> Iterator[tuple[str, int, int | None]]:
        yield "classes", len(listing.classes), published.classes
        yield "images", len(listing.items), published.images
        for split, total, of_class, of_domain in (
            (TRAIN, published.train, published.train_per_class, published.train_per_domain),
            (TEST, published.test, published.test_per_class, published.test_per_domain),
        ):
            yield f"{SPLITS[split]} images", splits[split], total
            for label, name in enumerate(listing.classes):
                yield f"{SPLITS[split]} images of class '{name}'", per_class[split, label], of_class
            for name, count in of_domain.items():
                domain = listing.domains.index(name) if name in listing.domains else -1
                yield f"{SPLITS[split]} images of domain '{name}'", per_domain[split, domain], count

    return [f"{what}: found {found}, published {count}" for what, found, count in each() if count not in (None, found)]
