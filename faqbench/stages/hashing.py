"""Hashes of files, texts and JSON values, sha256 everywhere, so that any tool can check them; versions."""

from __future__ import annotations

import hashlib
import json
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path

SMALL_BYTES = 2**26  # files up to this size are hashed when they are asked for
_TINY_BYTES = 2**20  # up to this size each time


def hash_file(path: Path) -> str:
    """Return the sha256 of a file's bytes as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_version(path: Path, small: int = SMALL_BYTES) -> list[object]:
    """Return what tells one state of a file from another: its sha256, of a larger one size and times."""
    stat = path.stat()
    # The change time cannot be set back, as the modification time can.
    state = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    if stat.st_size > small:
        return list(state)
    return [hash_file(path) if stat.st_size <= _TINY_BYTES else _hash_as_of(path, state)]


@lru_cache(maxsize=1024)
def _hash_as_of(path: Path, _: tuple[int, int, int]) -> str:
    """Return the sha256 of a file in a state that was seen before, as each cell of a sweep asks for it."""
    return hash_file(path)


def hash_text(text: str) -> str:
    """Return the sha256 of a text's UTF-8 bytes as 64 hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def hash_json(value: object) -> str:
    """Return the sha256 of a JSON value, independent of the order of its keys.

    Raises:
        ValueError: for NaN or infinity, which JSON cannot hold.
        TypeError: for a value that is not JSON.
    """
    return hash_text(json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False))


@cache
def library_version(library: str) -> str:
    """Return the installed version of a library that a stage's result depends on.

    Asked of the installation once per process: a plan needs it thousands of times.
    """
    return version(library)
