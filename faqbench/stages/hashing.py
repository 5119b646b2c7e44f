"""Hashes of files, texts and JSON values, sha256 everywhere, so that any tool can check them; versions."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from importlib.metadata import version
from pathlib import Path


def hash_file(path: Path) -> str:
    """Return the sha256 of a file's bytes as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
