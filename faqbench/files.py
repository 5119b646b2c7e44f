"""Writing files so that a reader sees all of one or nothing of it, whatever interrupts the writer."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from faqbench.config import UserError

_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission was denied",
    errno.EPERM: "permission was denied",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EEXIST: "a part of the path is a file, not a folder",  # what mkdir says of it
}


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
    except OSError as error:
        reason = _REASONS.get(error.errno or 0)
        if reason is None:
            raise
        raise UserError(f"Could not {what} at {path}: {reason}; {remedy}.") from error


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `target`, which takes target's place when the block ends well.

    An existing target is replaced. When the block raises, nothing of it remains.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        scratch.chmod(0o777 & ~_umask())
        yield scratch
        if target.exists():
            old = scratch.with_name(scratch.name + ".old")
            target.rename(old)
            scratch.rename(target)
            shutil.rmtree(old)
        else:
            scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def atomic_write(target: Path, content: bytes) -> None:
    """Write a file's whole content through a temporary file beside it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    scratch = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        scratch.chmod(0o666 & ~_umask())
        scratch.replace(target)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
