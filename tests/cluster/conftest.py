"""What several tests of the cluster need."""

import itertools
from collections.abc import Iterator

import pytest
from fsspec.implementations.memory import MemoryFileSystem

_numbers = itertools.count()


@pytest.fixture
def url() -> Iterator[str]:
    """An empty place in the memory of this process."""
    place = f"/store-{next(_numbers)}/paper"
    yield f"memory:/{place}"
    files = MemoryFileSystem()
    if files.exists(place):
        files.rm(place, recursive=True)
