"""manifest.json beside the index: what was prepared, from what, how, and with which result. No path, no time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.index import INDEX_FILE, SPLITS, Index
from benchmarks.preparation.records import Skipped
from fmlora_dist.errors import UserError

__all__ = ["MANIFEST_FILE", "counts", "make_manifest", "parse_manifest"]

MANIFEST_FILE = "manifest.json"
SCHEMA = 1


def counts(index: Index) -> dict[str, Any]:
    """Images of each split, class and domain, by name."""

    def of(numbers: np.ndarray, names: Sequence[str]) -> dict[str, dict[str, int]]:
        table = [np.bincount(numbers[index.split == split], minlength=len(names)) for split in range(len(SPLITS))]
        return {
            name: {split: int(column[n]) for split, column in zip(SPLITS, table, strict=True)}
            for n, name in enumerate(names)
        }

    splits = {name: int(np.count_nonzero(index.split == number)) for number, name in enumerate(SPLITS)}
    return {"splits": splits, "classes": of(index.label, index.classes), "domains": of(index.domain, index.domains)}


def make_manifest(
    index: Index,
    index_file: bytes,
    *,
    options: Mapping[str, Any],
    skipped: Sequence[Skipped],
    plan: str,
    versions: Mapping[str, str],
) -> bytes:
    """The manifest's bytes; equal arguments give equal ones.

    Args:
        index: Of the shards.
        index_file: Its bytes as they are written.
        options: Of the preparation, with the name of its source.
        skipped: Images that were left out, and why.
        plan: Digest of all that decided the output.
        versions: Of the tool, and of what encodes images.
    """
    files = {INDEX_FILE: {"bytes": len(index_file), "sha256": hashlib.sha256(index_file).hexdigest()}}
    files |= {shard.name: {"bytes": shard.bytes, "sha256": shard.sha256} for shard in index.shards}
    document = {
        "schema": SCHEMA,
        "data_set": index.name,
        "split_rule": index.split_rule,
        "options": dict(options),
        "counts": counts(index),
        "skipped": [{"file": one.file, "key": one.key, "reason": one.reason} for one in skipped],
        "files": files,
        "versions": dict(versions),
        "plan": plan,
    }
    return (json.dumps(document, indent=1, ensure_ascii=True) + "\n").encode()


def parse_manifest(content: bytes, where: str) -> dict[str, Any]:
    """The manifest of those bytes.

    Raises:
        UserError: If they are none.
    """
    try:
        document = json.loads(content)
        files = document["files"]
        if document["schema"] != SCHEMA or not isinstance(document["counts"], dict):
            raise ValueError(f"schema {document['schema']!r}")
        for name, entry in files.items():
            if not isinstance(entry["bytes"], int) or not isinstance(entry["sha256"], str):
                raise ValueError(f"file {name!r}")
        for one in document["skipped"]:
            if one.keys() != {"file", "key", "reason"} or not all(isinstance(text, str) for text in one.values()):
                raise ValueError(f"skipped {one!r}")
        if INDEX_FILE not in files or not all(isinstance(document[key], str) for key in ("data_set", "plan")):
            raise ValueError("missing entries")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{where}: found a broken manifest ({type(error).__name__}: {error}), expected that of `fmlora prepare`;"
            " restore it, or prepare the data set again"
        ) from None
    assert isinstance(document, dict)
    return document
