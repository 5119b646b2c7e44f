"""The stage cache: results under a hash of everything they depend on, checked when read.

    <root>/stages/<stage>/<hash of key>/     the files that the stage wrote
                                 manifest.json   the key, and the sha256 and size of every file

An entry appears by one rename, under a file lock, so two processes that ask for the same stage compute
it once and nobody sees half of it. An entry that does not match its manifest is reported, set aside
and recomputed.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import platformdirs
from filelock import FileLock

from faqbench.files import atomic_directory, explain_os_error
from faqbench.stages.hashing import hash_file, hash_json

_log = logging.getLogger("faqbench")
_REMEDY = "free some space or set FAQBENCH_CACHE to a folder that can be written"


def cache_root() -> Path:
    """Return the cache folder: $FAQBENCH_CACHE, else the platform's own place for caches."""
    chosen = os.environ.get("FAQBENCH_CACHE")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("faqbench"))


@dataclass(frozen=True, kw_only=True)
class CacheEntry:
    """A finished stage on disk.

    Attributes:
        path: the folder that holds the stage's files, all of them verified.
        cached: whether it was there before this call.
        seconds: the time this call took; for a cached entry, the time to verify it.
    """

    path: Path
    cached: bool
    seconds: float


class StageCache:
    """Content-addressed folders below one root."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or cache_root()

    def entry_path(self, stage: str, key: Mapping[str, object]) -> Path:
        """Return where the stage with this key lies, or would lie."""
        return self.root / "stages" / stage / hash_json(dict(key))[:32]

    def get(
        self, stage: str, key: Mapping[str, object], build: Callable[[Path], None]
    ) -> CacheEntry:
        """Return the entry for a key, building it first when there is none that can be trusted.

        Args:
            stage: the stage's name, a folder name.
            key: a JSON mapping of everything the result depends on, its code version included.
            build: writes the stage's files into the empty folder it is given.

        Raises:
            UserError: when the cache folder cannot be written.
        """
        start = time.perf_counter()
        target = self.entry_path(stage, key)
        cached = target.exists() and find_damage(target, key) is None
        if cached:  # without a lock, so that a filled cache may be read-only
            return CacheEntry(path=target, cached=True, seconds=time.perf_counter() - start)
        with explain_os_error(f"write the cache of stage '{stage}'", target, _REMEDY):
            target.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(target.with_suffix(".lock")):
                cached = target.exists() and self._is_sound(stage, target, key)
                if not cached:
                    with atomic_directory(target) as scratch:
                        build(scratch)
                        write_manifest(scratch, key)
        return CacheEntry(path=target, cached=cached, seconds=time.perf_counter() - start)

    def _is_sound(self, stage: str, target: Path, key: Mapping[str, object]) -> bool:
        damage = find_damage(target, key)
        if damage is None:
            return True
        _log.warning("cache: %s entry %s is damaged (%s); recomputing", stage, target.name, damage)
        shutil.rmtree(target)
        return False


def find_damage(target: Path, key: Mapping[str, object] | None = None) -> str | None:
    """Say what is wrong with an entry, in words, or return None when it matches its manifest."""
    try:
        manifest = json.loads((target / "manifest.json").read_text())
        files = manifest["files"]
        if key is not None and hash_json(manifest["key"]) != hash_json(dict(key)):
            return "its manifest belongs to another key"
        for name, expected in files.items():
            path = target / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != expected["size"] or hash_file(path) != expected["sha256"]:
                return f"{name} does not match its checksum"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its manifest cannot be read: {error}"
    return None


def write_manifest(folder: Path, key: Mapping[str, object]) -> None:
    """Write the key, and the size and sha256 of every file below a folder, into its manifest."""
    files = {
        path.relative_to(folder).as_posix(): {
            "size": path.stat().st_size,
            "sha256": hash_file(path),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    manifest = {"key": dict(key), "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True))
