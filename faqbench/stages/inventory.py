"""What lies in the cache: sizes, ages, leftovers; checking entries, and evicting those used least recently.

Assets are listed with the stages and counted, but never evicted: they are what everything is made from.
So are the virtual environments of other tools, which go when they are pruned, not to make room for stages.

Leases: what a running cell reads is not evicted under its hands.

A reader holds a shared lock on an entry's mark, and an evictor needs the exclusive one. The mark is the
file that was written last: an entry's manifest, an environment's list of packages. Locks are of the
operating system's: they end with their process, whatever ends it, and need no writing, so a cache may be
read-only.
"""

from __future__ import annotations

import base64
import csv
import fcntl
import hashlib
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from faqbench.files import discard, remove_leftovers
from faqbench.foreign import is_name
from faqbench.stages.manifest import MANIFEST, entry_name, find_damage, read_manifest


class Leases:
    """The entries that one cell holds."""

    def __init__(self) -> None:
        self._handles: dict[Path, int] = {}

    def hold(self, entry: Path, target: Path | None = None) -> bool:
        """Hold an entry until `release`; False when it is gone, or is being evicted.

        Args:
            entry: its folder.
            target: where the folder is about to be moved, if it is.
        """
        name = target or entry
        if name in self._handles:
            if _is_there(self._handles[name], entry):
                return True
            os.close(self._handles.pop(name))  # another entry has taken its place
        try:
            handle = os.open(_mark(entry), os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return False
        except OSError:
            pass  # a file system without locks: nothing is evicted there either
        if not _is_there(handle, entry):
            os.close(handle)
            return False
        self._handles[name] = handle
        return True

    def drop(self, entry: Path) -> None:
        """Hold one entry no longer."""
        handle = self._handles.pop(entry, None)
        if handle is not None:
            os.close(handle)

    def release(self) -> None:
        """Hold nothing any longer."""
        for entry in list(self._handles):
            self.drop(entry)


@contextmanager
def nobody_holds(entry: Path) -> Iterator[bool]:
    """Yield whether no process holds an entry; while that is so, none can begin to."""
    handle = None
    free = False
    with suppress(OSError):
        # Some network file systems lock exclusively only what is open for writing.
        handle = os.open(_mark(entry), os.O_RDWR | os.O_NONBLOCK)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        free = _is_there(handle, entry)
    try:
        yield free
    finally:
        if handle is not None:
            os.close(handle)


def _is_there(handle: int, entry: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), _mark(entry).stat())
    except OSError:
        return False


def _mark(entry: Path) -> Path:
    manifest = entry / MANIFEST
    return manifest if manifest.is_file() else entry / PACKAGES


_ASSETS = "assets"
ENVIRONMENTS = "environments"
PACKAGES = "packages.txt"  # of an environment, as `pip freeze` lists them
_ENTRY = re.compile("[0-9a-f]{32}")  # as `entry_name` makes names
_STALE_LOCK_SECONDS = 86400.0


@dataclass(frozen=True, kw_only=True)
class StoredEntry:
    """One finished entry of the cache.

    Attributes:
        stage: its stage's name; `assets` for packaged models and data, `environments` for other tools'.
        name: of its folder.
        path: its folder.
        n_bytes: of its files, the manifest included.
        made: when it was written, in seconds since 1970.
        used: when it was last asked for.
    """

    stage: str
    name: str
    path: Path
    n_bytes: int
    made: float
    used: float

    @property
    def title(self) -> str:
        """`<stage>/<name>`, as records refer to it."""
        return f"{self.stage}/{self.name}"


def list_entries(root: Path) -> list[StoredEntry]:
    """Return all entries and assets of a cache, by stage and name; folders half written are left out."""
    entries = [e for folder in _all_folders(root) for e in _entries_in(folder)]
    return sorted(entries, key=lambda e: (e.stage, e.name))


def find_damaged(entries: Iterable[StoredEntry]) -> Iterator[tuple[StoredEntry, str | None]]:
    """Hash every file of some entries, yielding each entry with its damage in words, or None."""
    for entry in entries:
        damage = damage_of(entry)
        if entry.path.exists():  # not evicted meanwhile
            yield entry, damage


def damage_of(entry: StoredEntry) -> str | None:
    """Hash every file of an entry and say what is wrong with it, or return None."""
    if entry.stage == ENVIRONMENTS:
        return _damage_of_environment(entry.path)
    damage = find_damage(entry.path, afresh=True)
    if damage is None and entry.stage != _ASSETS:
        key = read_manifest(entry.path)["key"]
        if entry_name(key) != entry.name:
            return "its manifest belongs to another key"
    return damage


def _damage_of_environment(folder: Path) -> str | None:
    """Compare installed files with the checksums that pip wrote of them."""
    if not (folder / PACKAGES).is_file():
        return f"{PACKAGES} is missing"
    for record in sorted(folder.glob("lib/python*/site-packages/*.dist-info/RECORD")):
        try:
            with record.open(newline="") as file:
                rows = [(row[0], row[1]) for row in csv.reader(file) if row]
            for name, expected in rows:
                kind, _, digest = expected.partition("=")
                if kind != "sha256":  # of itself, and of what python compiled, it has none
                    continue
                sha256 = hashlib.sha256((record.parent.parent / name).read_bytes()).digest()
                if base64.urlsafe_b64encode(sha256).decode().rstrip("=") != digest:
                    return f"{name} does not match its checksum"
        except (OSError, ValueError, IndexError, csv.Error) as error:
            return f"{record.parent.name} cannot be read: {error}"
    return None


def evict(root: Path, max_bytes: int) -> list[StoredEntry]:
    """Remove the least recently used entries until those that stay are no larger than max_bytes.

    Entries that a running cell holds stay, whatever their size.

    Returns:
        What was removed.
    """
    entries = [e for folder in _stage_folders(root) for e in _entries_in(folder)]
    total, removed = sum(e.n_bytes for e in entries), []
    for entry in _least_recent(entries):
        if total <= max_bytes:
            break
        if remove_entry(entry):
            total -= entry.n_bytes
            removed.append(entry)
    return removed


def oldest_over(entries: Sequence[StoredEntry], max_bytes: float) -> list[StoredEntry]:
    """Return the least recently used entries without which the others are no larger than max_bytes."""
    total, over = sum(e.n_bytes for e in entries), []
    for entry in _least_recent(entries):
        if total <= max_bytes:
            break
        total -= entry.n_bytes
        over.append(entry)
    return over


def remove_entry(entry: StoredEntry) -> bool:
    """Remove an entry; False when a running cell holds it or it cannot be removed."""
    with nobody_holds(entry.path) as free:
        if not free:
            return False
        try:
            discard(entry.path)
        except OSError:
            return False
    return True


def tidy(root: Path) -> int:
    """Remove what killed processes left behind, and locks that nobody needs; return how many things."""
    removed = 0
    for folder in _all_folders(root):
        removed += remove_leftovers(folder)
    for folder in (root / ENVIRONMENTS, *_stage_folders(root)):
        locks = (p for p in folder.glob("*.lock") if _ENTRY.fullmatch(p.stem) and not p.is_symlink())
        removed += sum(_remove_stale_lock(path) for path in locks)
    return removed


def _remove_stale_lock(path: Path) -> bool:
    with suppress(OSError):
        if path.with_suffix("").exists() or time.time() - path.stat().st_mtime < _STALE_LOCK_SECONDS:
            return False
        try:
            with FileLock(path, timeout=0):
                path.unlink(missing_ok=True)
        except Timeout:
            return False
        return True
    return False


def _least_recent(entries: Sequence[StoredEntry]) -> list[StoredEntry]:
    now = time.time()
    # A stamp from the future is that of a clock since set back: its entry is as good as just used.
    return sorted(entries, key=lambda e: (min(e.used, now), e.title))


def _all_folders(root: Path) -> list[Path]:
    return [root / _ASSETS, root / ENVIRONMENTS, *_stage_folders(root)]


def _stage_folders(root: Path) -> list[Path]:
    stages = root / "stages"
    folders = stages.iterdir() if stages.is_dir() else ()
    return sorted(p for p in folders if is_name(p.name) and p.is_dir() and not p.is_symlink())


def entry_at(path: Path) -> StoredEntry:
    """Return the entry in a folder.

    Raises:
        OSError: when it was evicted while it was looked at.
    """
    used = path.stat().st_mtime
    files = [p.stat() for p in path.rglob("*") if p.is_file()]
    mark = _mark(path)
    return StoredEntry(
        stage=path.parent.name,
        name=path.name,
        path=path,
        n_bytes=sum(s.st_size for s in files),
        made=mark.stat().st_mtime if mark.is_file() else used,
        used=used,
    )


def _is_entry(path: Path) -> bool:
    """Say whether a folder below a stage is one that a stage left, whole or damaged."""
    return _ENTRY.fullmatch(path.name) is not None and not path.is_symlink()


def _entries_in(folder: Path) -> Iterator[StoredEntry]:
    if not folder.is_dir():
        return
    for item in os.scandir(folder):
        if not item.is_dir() or item.name.startswith(".") or item.name.endswith(".downloads"):
            continue
        if not is_name(item.name) or item.is_symlink():
            continue
        if folder.name != _ASSETS and not _is_entry(Path(item.path)):
            continue
        with suppress(OSError):
            yield entry_at(Path(item.path))
