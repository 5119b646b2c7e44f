"""Whether a folder of results is still what was written: a manifest of sizes and sha256, read against it.

    manifest.json    {"key": what the folder's content depends on, "files": {name: {size, sha256}}}

Files are hashed when a process first reads them, and again whenever their size or a time stamp has
changed; unchanged ones are hashed once per process, since a sweep reads the same gigabytes many times.

Hashes are sha256 everywhere, of files, texts and JSON values, so that any tool can check them.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from faqbench.foreign import read_json

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


MANIFEST = "manifest.json"
_MOST_MEGABYTES = 64
_SETTLED_NS = 100_000_000  # a file system's clock may tick this slowly
_Signature = tuple[tuple[str, int, int, int], ...]
_sound: dict[tuple[Path, str], _Signature] = {}


class FileFacts(TypedDict):
    """What a manifest says of a file."""

    size: Annotated[int, Field(strict=True, ge=0)]
    sha256: Annotated[str, Field(strict=True, pattern="^[0-9a-f]{64}$")]


class Manifest(TypedDict):
    """What a manifest holds."""

    key: dict[str, Any]
    files: dict[str, FileFacts]


_manifest = TypeAdapter(Manifest)


def entry_name(key: Mapping[str, object]) -> str:
    """Return the name of the folder that the entry of a key lies in."""
    return hash_json(dict(key))[:32]


def write_manifest(folder: Path, key: Mapping[str, object]) -> None:
    """Write the key, and the size and sha256 of every file below a folder, into its manifest."""
    files = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": hash_file(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    manifest = {"key": dict(key), "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True))


def find_damage(
    folder: Path, key: Mapping[str, object] | None = None, *, afresh: bool = False
) -> str | None:
    """Say what is wrong with a folder, in words, or return None when it matches its manifest.

    Args:
        folder: with a manifest.
        key: what its manifest's key must be; None accepts any.
        afresh: hash every file, also those that this process has hashed before.
    """
    try:
        manifest = read_manifest(folder)
        files, found_key = manifest["files"], hash_json(manifest["key"])
        if key is not None and found_key != hash_json(dict(key)):
            return "its manifest belongs to another key"
        for name in files:
            if not _is_inside(name):
                return f"its manifest names {name}, which is not in it"
            if not (folder / name).is_file():
                return f"{name} is missing"
        signature = _signature(folder, [MANIFEST, *files])
        memory = (folder.absolute(), found_key)
        if not afresh and _sound.get(memory) == signature:
            return None
        for name, expected in files.items():
            path = folder / name
            if path.stat().st_size != expected["size"] or hash_file(path) != expected["sha256"]:
                return f"{name} does not match its checksum"
        if _is_settled(signature):
            _sound[memory] = signature
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its manifest cannot be read: {error}"
    return None


def read_manifest(folder: Path) -> Manifest:
    """Read a folder's manifest.

    Raises:
        ValueError: with the reason, when there is none or it is not what was written.
    """
    raw = read_json(folder / MANIFEST, _MOST_MEGABYTES)
    try:
        return _manifest.validate_python(raw)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise ValueError(f"{MANIFEST} is malformed at {where or 'its top'}") from error


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def _signature(folder: Path, names: list[str]) -> _Signature:
    stats = [(name, (folder / name).stat()) for name in names]
    return tuple((name, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in stats)


def _is_settled(signature: _Signature) -> bool:
    """Say whether a change from now on would show in the time stamps.

    It would not in files written a moment ago, or in the future of a clock that was set back.
    """
    newest = max(max(mtime, ctime) for _, _, mtime, ctime in signature)
    return time.time_ns() - newest > _SETTLED_NS
