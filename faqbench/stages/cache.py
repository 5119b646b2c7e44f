"""The stage cache: results under a hash of everything they depend on, checked when read.

    <root>/stages/<stage>/<hash of key>/     the files that the stage wrote
                                 manifest.json   the key, and the sha256 and size of every file

An entry appears by one rename, under a file lock, so two processes that ask for the same stage compute
it once and nobody sees half of it. An entry that does not match its manifest is reported, set aside
and recomputed. The time stamp of an entry's folder says when it was last used; `inventory` lists, checks
and evicts entries, and never one that a running cell holds.

What a long activity tells its user is a protocol of one method, with an implementation of plain lines here;
the command line supplies a rich one on a terminal. Stages never print.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import platformdirs

from faqbench.files import atomic_directory, discard, explain_os_error, remove_leftovers
from faqbench.processes import give_back, locked
from faqbench.stages.inventory import Leases, evict
from faqbench.stages.manifest import MANIFEST, entry_name, find_damage, read_manifest, write_manifest

_log = logging.getLogger("faqbench")


class Advance(Protocol):
    """Called by an activity after each finished step."""

    def __call__(self, steps: int = 1) -> None:
        """Say that so many more steps are done."""
        ...


class Progress(Protocol):
    """Shows activities as they run, such as loading a model; each is one context."""

    @contextmanager
    def activity(self, title: str, total: int) -> Iterator[Advance]:
        """Announce an activity of `total` steps and yield the function that advances it."""
        ...

    def note(self, text: str) -> None:
        """Show one line that is worth reading, as a warning is."""
        ...


class PlainProgress:
    """One log line when an activity ends, and one every `interval_seconds` with an estimate of the rest."""

    def __init__(self, interval_seconds: float = 30.0) -> None:
        self._interval_seconds = interval_seconds

    @contextmanager
    def activity(self, title: str, total: int) -> Iterator[Advance]:
        """See `Progress.activity`."""
        start = shown = time.monotonic()
        done = 0

        def advance(steps: int = 1) -> None:
            nonlocal done, shown
            done += steps
            now = time.monotonic()
            if now - shown >= self._interval_seconds and done < total:
                shown = now
                left = (now - start) / done * (total - done)
                _log.info("%s: %d/%d, about %.0f s left", title, done, total, left)

        yield advance
        _log.info("%s: done in %.1f s", title, time.monotonic() - start)

    def note(self, text: str) -> None:
        """See `Progress.note`."""
        _log.warning("%s", text)


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
        seconds: to verify or to make it, waiting for another process included, less those of the
            entries that it asked for itself and of loading the model.
    """

    path: Path
    cached: bool
    seconds: float


@dataclass(frozen=True, kw_only=True)
class StageUse:
    """One entry that a cell asked for.

    Attributes:
        entry: its name, `<stage>/<hash of key>`.
        title: what it was asked for as, such as the name of a protocol.
        cached: whether it was there.
        seconds: as of its `CacheEntry`.
        n_bytes: of its files.
    """

    entry: str
    title: str
    cached: bool
    seconds: float
    n_bytes: int


@dataclass
class Lap:
    """A stretch of time; `seconds` are its own once it is over, those of laps inside it left out."""

    seconds: float = 0.0


class StageCache:
    """Content-addressed folders below one root; as a context, it holds what it gave until the end.

    Attributes:
        root: the cache folder.
        uses: what was asked for, in that order.
    """

    def __init__(self, root: Path | None = None, max_bytes: int | None = None, owner: str = "") -> None:
        """Open a cache.

        Args:
            root: None is `cache_root()`.
            max_bytes: the least recently used entries go when all together are larger.
            owner: the run that asks, told to other processes that wait for what is made here.
        """
        self.root = root or cache_root()
        self.uses: list[StageUse] = []
        self._max_bytes = max_bytes
        self._owner = owner
        self._leases = Leases()
        self._under_way: list[Lap] = []
        self._ahead: dict[Path, float] = {}  # seconds of what was made before it was asked for

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leases.release()

    def entry_path(self, stage: str, key: Mapping[str, object]) -> Path:
        """Return where the stage with this key lies, or would lie."""
        return self.root / "stages" / stage / entry_name(key)

    def find(self, stage: str, key: Mapping[str, object]) -> Path | None:
        """Return the folder of an entry that is there and sound, and hold it; None otherwise."""
        target = self.entry_path(stage, key)
        if not self._leases.hold(target):
            return None
        if find_damage(target, key) is not None:
            self._leases.drop(target)
            return None
        with suppress(OSError):  # a read-only cache
            os.utime(target)
        return target

    def get(
        self, stage: str, key: Mapping[str, object], build: Callable[[Path], None], title: str = ""
    ) -> CacheEntry:
        """Return the entry for a key, building it first when there is none that can be trusted.

        Args:
            stage: the stage's name, a folder name.
            key: a JSON mapping of everything the result depends on, its code version included.
            build: writes the stage's files into the empty folder it is given.
            title: remembered in `uses`.

        Raises:
            UserError: when the cache folder cannot be written.
        """
        with self.lap() as lap:
            cached = self._get(stage, key, build)
        target = self.entry_path(stage, key)
        if target in self._ahead:  # this cell made it, before it asked for it
            cached, lap.seconds = False, lap.seconds + self._ahead.pop(target)
        use = StageUse(
            entry=f"{stage}/{target.name}",
            title=title,
            cached=cached,
            seconds=round(lap.seconds, 3),
            n_bytes=sum(f["size"] for f in read_manifest(target)["files"].values()),
        )
        self.uses.append(use)
        return CacheEntry(path=target, cached=cached, seconds=lap.seconds)

    def keep(
        self, stage: str, key: Mapping[str, object], build: Callable[[Path], None], seconds: float = 0.0
    ) -> None:
        """Keep what nobody has asked for yet: a part of the entry under way, or one that is made with it.

        Args:
            stage: as for `get`.
            key: as for `get`.
            build: as for `get`.
            seconds: of the entry under way that were spent on this one.
        """
        with self.lap() as lap:
            cached = self._get(stage, key, build)
        if not cached:
            self._ahead[self.entry_path(stage, key)] = seconds + lap.seconds
            if self._under_way:
                self._under_way[-1].seconds -= seconds

    def hold(self, folder: Path) -> bool:
        """Hold an environment until the end, as entries are held; False when it is not there."""
        held = self._leases.hold(folder)
        if held:
            with suppress(OSError):  # a read-only cache
                os.utime(folder)
        return held

    def forget(self, stage: str, key: Mapping[str, object]) -> None:
        """Remove such a part, if it is there."""
        target = self.entry_path(stage, key)
        self._leases.drop(target)
        if target.is_dir():
            with locked(target.with_suffix(".lock"), self._owner, lambda _: None):
                discard(target)

    @contextmanager
    def lap(self) -> Iterator[Lap]:
        """Time what runs inside, and leave it out of the seconds of what it is a part of."""
        start, lap = time.perf_counter(), Lap()
        self._under_way.append(lap)
        try:
            yield lap
        finally:
            self._under_way.pop()
            seconds = time.perf_counter() - start
            lap.seconds += seconds
            if self._under_way:
                self._under_way[-1].seconds -= seconds

    def reject(self, stage: str, key: Mapping[str, object], reason: str) -> None:
        """Throw away an entry whose files are sound, but say what its stage did not write.

        Args:
            stage: as for `get`, which gave the entry last.
            key: as for `get`.
            reason: said to the user.
        """
        target = self.entry_path(stage, key)
        _log.warning("cache: %s entry %s is foreign (%s); recomputing", stage, target.name, reason)
        self._leases.drop(target)
        with locked(target.with_suffix(".lock"), self._owner, lambda _: None):
            discard(target)
        entry = f"{stage}/{target.name}"
        last = max(i for i, use in enumerate(self.uses) if use.entry == entry)
        del self.uses[last]  # it was of no use

    def has(self, stage: str, key: Mapping[str, object]) -> bool:
        """Say whether there is an entry for a key, without reading what is in it."""
        return (self.entry_path(stage, key) / MANIFEST).is_file()

    def _get(self, stage: str, key: Mapping[str, object], build: Callable[[Path], None]) -> bool:
        target = self.entry_path(stage, key)
        # Without a lock first, so that a filled cache may be read-only.
        cached = self.find(stage, key) is not None
        if not cached:
            with explain_os_error(f"write the cache of stage '{stage}'", target, _REMEDY):
                target.parent.mkdir(parents=True, exist_ok=True)

                def wait(holder: str) -> None:
                    _log.warning("%s: waiting for %s, which makes it", stage, holder)

                with locked(target.with_suffix(".lock"), self._owner, wait):
                    cached = self.find(stage, key) is not None
                    if not cached:
                        self._build(stage, key, build)
        return cached

    def _build(self, stage: str, key: Mapping[str, object], build: Callable[[Path], None]) -> None:
        target = self.entry_path(stage, key)
        remove_leftovers(target.parent, target.name)
        if target.exists():
            damage = find_damage(target, key)
            _log.warning("cache: %s entry %s is damaged (%s); recomputing", stage, target.name, damage)
            discard(target)
        with atomic_directory(target) as scratch:
            build(scratch)
            give_back()
            write_manifest(scratch, key)
            self._leases.hold(scratch, target)
        if self._max_bytes is not None:
            evict(self.root, self._max_bytes)
