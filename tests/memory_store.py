"""A store in the memory of this process, as fsspec has one: what lies in it, by its URL."""

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

__all__ = ["get", "names", "put"]


def put(url: str, **contents: bytes) -> None:
    for name, content in contents.items():
        fsspec.filesystem("memory").pipe_file(f"{url}/{name.replace('__', '/').replace('_', '.')}", content)


def get(url: str, name: str) -> bytes:
    content: bytes = fsspec.filesystem("memory").cat_file(f"{url}/{name}")
    return content


def names(url: str) -> set[str]:
    root = url.removeprefix("memory:/")
    return {path.removeprefix(f"{root}/") for path in MemoryFileSystem().find(root)}
