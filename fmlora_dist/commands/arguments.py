"""What the commands' parsers have in common."""

import argparse
from pathlib import Path

from fmlora_dist.errors import UserError

__all__ = ["byte_count", "make_parser", "positive", "whole", "write_bytes", "write_text"]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError(message)


def make_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """A parser for ``fmlora NAME`` whose errors are ``UserError``."""
    return _Parser(prog=f"fmlora {name}", description=description, allow_abbrev=False)


def write_text(file: Path, text: str, option: str) -> None:
    """``write_bytes`` of a text."""
    write_bytes(file, text.encode(), option)


def write_bytes(file: Path, content: bytes, option: str) -> None:
    """Write a file that an option named, whole or not at all. Raises ``UserError``."""
    from fmlora_dist.record import write_atomically

    try:
        with write_atomically(file) as path:
            path.write_bytes(content)
    except OSError as error:
        raise UserError(f"{option}: cannot write {file}: {error.strerror}; choose another file") from error


def positive(text: str) -> int:
    """A number from 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"found {value}, expected at least 1")
    return value


def whole(text: str) -> int:
    """A number from 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"found {value}, expected 0 or more")
    return value


def byte_count(text: str) -> int:
    """512MiB, say, in bytes; at least one."""
    from fmlora_dist.config import parse_bytes

    try:
        value = parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if value < 1:
        raise argparse.ArgumentTypeError(f"found '{text}', expected at least 1 byte; write for example 64MiB")
    return value
