"""Writing files so that a reader sees all of one or nothing of it, whatever interrupts the writer.

A writer works in a scratch file or folder beside its target and holds a lock on it. What a killed writer
leaves behind is therefore told from what a living one is writing, and `remove_leftovers` takes it away.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from faqbench.config import UserError
from faqbench.interrupts import held_back, raise_if_interrupted

_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file would grow past the limit on its size",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission was denied",
    errno.EPERM: "permission was denied",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EEXIST: "a part of the path is a file, not a folder",  # what mkdir says of it
}
_SCRATCH = re.compile(r"\.(?P<target>.+)\.[a-z0-9_]{8}(?P<old>\.old)?")
_RUST_ERROR = re.compile(r"\(os error (\d+)\)")


@contextmanager
def explain_os_error(what: str, path: Path, remedy: str) -> Iterator[None]:
    """Turn a full disk, a read-only folder and their like into a UserError of one sentence.

    Args:
        what: the action that failed, as in "write the record".
        path: where it happened.
        remedy: what the user can do, as in "free some space, or set paths.runs".

    Raises:
        UserError: for the operating system's errors that a user can mend; others pass unchanged.
    """
    try:
        yield
    except Exception as error:
        reason = _REASONS.get(_error_number(error) or 0)
        if reason is None:
            raise
        raise UserError(f"Could not {what} at {path}: {reason}; {remedy}.") from error


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `target`, which takes target's place when the block ends well.

    An existing target is replaced. When the block raises, nothing of it remains.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch, lock = _locked_scratch(target)
    try:
        scratch.chmod(0o777 & ~_umask())
        yield scratch
        raise_if_interrupted()  # what was made after one that a library dropped may be incomplete
        if target.exists():
            _replace(target, scratch)
        else:
            scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        os.close(lock)


def atomic_write(target: Path, content: bytes) -> None:
    """Write a file's whole content through a temporary file beside it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    scratch = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            _try_lock(file.fileno())
            file.write(content)
            file.flush()
            scratch.chmod(0o666 & ~_umask())
            scratch.replace(target)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def remove_leftovers(folder: Path, target: str | None = None) -> int:
    """Remove the scratch files and folders that killed writers left, and return how many there were.

    A target that a writer had moved aside when it was killed is put back.

    Args:
        folder: where the targets lie.
        target: the name of one target; None is all of them.
    """
    removed = 0
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = _SCRATCH.fullmatch(path.name)
        if match is None or (target is not None and match["target"] != target):
            continue
        with suppress(OSError):
            handle = os.open(path, os.O_RDONLY)
            try:
                if not _try_lock(handle):
                    continue
                if match["old"] and not (folder / match["target"]).exists():
                    path.rename(folder / match["target"])
                elif path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
                removed += 1
            finally:
                os.close(handle)
    return removed


def _replace(target: Path, scratch: Path) -> None:
    """Put a scratch folder in the place of an existing one, which is locked while it lies aside."""
    old = scratch.with_name(scratch.name + ".old")
    lock = os.open(target, os.O_RDONLY)
    try:
        _try_lock(lock)
        with held_back():
            target.rename(old)
            scratch.rename(target)
        shutil.rmtree(old)
    finally:
        os.close(lock)


def _locked_scratch(target: Path) -> tuple[Path, int]:
    """Make a scratch folder and lock it; one that was taken for a leftover meanwhile is made again."""
    while True:
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        handle = os.open(scratch, os.O_RDONLY)
        _try_lock(handle)
        if scratch.exists():
            return scratch, handle
        os.close(handle)


def _try_lock(handle: int) -> bool:
    """Lock an open file or folder; False when another holds it, or the file system has no such locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _error_number(error: Exception) -> int | None:
    """Return the operating system's number of an error, also where a library in Rust wrapped it."""
    if isinstance(error, OSError):
        return error.errno
    wrapped = _RUST_ERROR.search(str(error))
    return int(wrapped[1]) if wrapped else None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
